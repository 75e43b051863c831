// The SIMT harness: runs a kernel written for a GPU on one CPU thread, one fiber per GPU thread.
//
// A kernel reaches the hardware only through the functions below; csrc/cuda/device/ maps its own
// names to them. What a GPU leaves undefined is an error here, with kernel, block and thread:
//
//   squeeze: block 3: barrier divergence: thread 0 waits at sync_threads, thread 32 has exited
//
// A fiber runs until it waits, so the code between two waits is atomic and memory is sequentially
// consistent: a missing fence does not show. What the kernels compute is unknown here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

namespace simt {

constexpr unsigned kWarpThreads = 32;
constexpr unsigned kMaxBlockThreads = 1024;
constexpr size_t kSharedAlignment = 128;

struct Launch {
  const char* kernel;  // the name in error messages
  unsigned blocks;
  unsigned threads;     // per block
  size_t shared_bytes;  // dynamic shared memory of a block
};

// How the threads are interleaved. With seed 0, in order: blocks by index, threads by index, each
// until it waits. With any other seed, blocks start in random order, random threads are resumed,
// and about half of the threads, warps or blocks are kept behind for as long as the others can go
// on without them.
struct Schedule {
  unsigned resident = 1;  // blocks alive at a time
  uint64_t seed = 0;      // equal seeds give equal interleavings
  // Rounds in which every thread that can run only spins, before that counts as a stuck wait.
  unsigned spin_rounds = 10000;
};

// The schedule of the launches to come on this OS thread; tests assign to it.
Schedule& schedule();

// Runs `body` once per thread of the grid. Throws std::runtime_error for an exception in a thread,
// for divergence, for a stuck wait and for a stack overflow, after every thread's frames have been
// unwound (so a function that waits must not be noexcept). The harness is as new afterwards.
void launch(const Launch& launch, const std::function<void()>& body);

// The rest is for the body of a launch.

// Reports an access that is about to happen, for the recording (memory.h); nothing without one.
// The call site tells one request of a warp from another: inline what lies between it and the
// kernel.
enum class Access { read, write };
void global_access(const void* address, size_t bytes, Access access);
void shared_access(const void* address, size_t bytes, Access access);

unsigned thread_index();
unsigned block_index();
unsigned block_threads();
unsigned grid_blocks();

// Dynamic shared memory, aligned to kSharedAlignment. Every byte is 0xff before each block: NaN in
// any floating-point type. Its size is exact, so that AddressSanitizer sees one byte too many.
void* shared_memory();

// Barriers for every thread of the block, or of the warp: none may have exited or wait elsewhere.
void sync_threads();
void sync_warp();

// One turn of a loop that waits for another thread: lets the others run.
void spin();

namespace detail {
enum class Shuffle { lane, down, exclusive_or };

// Offers `value` to the warp, waits for all its lanes, and takes what lane `source` offered.
void shuffle(Shuffle kind, unsigned source, const void* value, void* result, size_t bytes);
unsigned lane_index();

template <class T>
T shuffle(Shuffle kind, unsigned source, T value) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(uint64_t));
  T result;
  shuffle(kind, source, &value, &result, sizeof(T));
  return result;
}
}  // namespace detail

// Each takes the value of another lane. Every lane of the warp takes part; in the last warp of a
// block, those that exist. A lane that does not exist gives 0xff bytes.
template <class T>
T shuffle(T value, unsigned lane) {
  return detail::shuffle(detail::Shuffle::lane, lane % kWarpThreads, value);
}

template <class T>
T shuffle_xor(T value, unsigned lane_mask) {
  const unsigned source = (detail::lane_index() ^ lane_mask) % kWarpThreads;
  return detail::shuffle(detail::Shuffle::exclusive_or, source, value);
}

// The last `delta` lanes keep their own value.
template <class T>
T shuffle_down(T value, unsigned delta) {
  const unsigned lane = detail::lane_index();
  const unsigned source = lane + delta < kWarpThreads ? lane + delta : lane;
  return detail::shuffle(detail::Shuffle::down, source, value);
}

}  // namespace simt
