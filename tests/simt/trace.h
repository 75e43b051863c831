// The accesses of one block while they are recorded. Internal to the harness: simt.cpp reports
// every access and every meeting of threads, memory.cpp turns them into counts.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "memory.h"
#include "simt.h"

namespace simt {

struct Kind {
  Access access;
  unsigned bytes;  // per lane
  unsigned tensor;
  bool operator==(const Kind& other) const {
    return access == other.access && bytes == other.bytes && tensor == other.tensor;
  }
};

// What the lanes of a warp ask for together: an address each, as many as take part.
struct Request {
  unsigned lanes = 0;
  uintptr_t address[kWarpThreads];
};

// The requests of one kind of one warp at one call site, since its lanes last met.
struct Site {
  Kind kind;
  unsigned used = 0;
  unsigned taken[kWarpThreads] = {};  // by each lane
  std::vector<Request> requests;
};

// Who wrote an element last. A launch is numbered from 1; 0: nobody.
struct Writer {
  uint32_t launch = 0;
  uint32_t block = 0;
  uint32_t barrier = 0;  // barriers of the block by then
  uint32_t thread = 0;
};

// By block: its writes up to this barrier, exclusive, are known.
using Clock = std::map<uint32_t, uint32_t>;
void join(Clock& clock, const Clock& other);

class BlockTrace;

class Recording {
 public:
  explicit Recording(std::vector<Tensor> tensors);

  void start_launch(const Launch& launch);
  std::vector<LaunchTraffic> take_launches() { return std::move(launches_); }

  // The index of the tensor that holds [address, address + bytes); throws what is wrong with it.
  unsigned check(uintptr_t address, size_t bytes, Access access, const BlockTrace& block,
                 unsigned thread);
  // What is known by who sees the flag set.
  Clock& flag(const void* address) { return flags_[address]; }
  // Numbers, from 0 in each launch, the pairs of a call site and a kind.
  unsigned site_of(const void* caller, const Kind& kind);
  unsigned shared_tensor() const { return static_cast<unsigned>(tensors_.size()); }
  void count(const Kind& kind, const Request& request);

 private:
  struct Cell {  // one element of a tensor
    uint64_t last_touch = 0;
    uint32_t last_read = 0;  // number of the launch, from 1
    Writer writer;
  };

  void count_global(const Kind& kind, const Request& request);
  void count_shared(const Kind& kind, const Request& request);
  uint64_t touch(unsigned tensor, uintptr_t begin, uintptr_t end, Access access);

  struct Call {
    const void* caller = nullptr;
    Kind kind;
    unsigned site = 0;
  };

  std::vector<Tensor> tensors_;
  std::vector<std::vector<Cell>> cells_;
  std::vector<LaunchTraffic> launches_;
  std::map<const void*, Clock> flags_;
  std::vector<Call> calls_;  // a hash table
  unsigned sites_ = 0;
  unsigned recent_ = 0;  // the tensor of the last access
  uint64_t clock_ = 1;   // advances by one per byte: memory.h
};

// The recording of this OS thread, or null.
Recording* recording();

class BlockTrace {
 public:
  BlockTrace(Recording& recording, const Launch& launch, unsigned index, const void* shared);
  ~BlockTrace() { threads_met(); }
  BlockTrace(const BlockTrace&) = delete;
  BlockTrace& operator=(const BlockTrace&) = delete;

  void global(unsigned thread, const void* address, size_t bytes, Access access,
              const void* caller);
  void shared(unsigned thread, const void* address, size_t bytes, Access access,
              const void* caller);

  void released(unsigned thread, const void* flag);
  void acquired(unsigned thread, const void* flag);

  void threads_met();
  void warp_met(unsigned warp);

  // Of an access of `thread` to global memory, now.
  Writer writer(uint32_t launch, unsigned thread) const {
    return {launch, index_, barriers_, thread};
  }
  // True if `thread` is ordered after what `before` did in this launch.
  bool follows(const Writer& before, unsigned thread) const;

 private:
  struct Stamp {  // the accesses of one kind since the last barrier
    uint32_t barrier = 0;
    unsigned thread = 0;
    bool several = false;  // threads
  };
  struct SharedCell {
    Stamp written, read;
  };

  void add(unsigned thread, unsigned tensor, uintptr_t address, size_t bytes, Access access,
           const void* caller);
  bool races(const Stamp& before, unsigned thread) const;
  void stamp(Stamp& stamp, unsigned thread) const;

  Recording& recording_;
  unsigned index_;
  uintptr_t shared_;
  size_t shared_bytes_;
  uint32_t barriers_ = 1;
  Clock clock_;                       // what every thread of the block knows of other blocks
  std::map<unsigned, Clock> learnt_;  // by a thread, since the last barrier
  std::vector<std::vector<Site>> warps_;
  std::vector<SharedCell> cells_;
};

}  // namespace simt
