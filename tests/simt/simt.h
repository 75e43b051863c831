// The SIMT harness: runs a kernel written for a GPU on one CPU thread, one fiber per GPU thread.
//
// A kernel reaches the hardware only through the functions below; csrc/cuda/device/ maps its own
// names to them. What a GPU leaves undefined is an error here, with kernel, block and thread:
//
//   squeeze: block 3: barrier divergence: thread 0 waits at sync_threads, thread 32 has exited
//
// A fiber runs until it waits, so the code between two waits is atomic and memory is sequentially
// consistent; what a weaker order would make of it is checked by the recording (memory.h). What the
// kernels compute is unknown here.
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

// A barrier for every thread of the block: none may have exited or wait elsewhere.
void sync_threads();

// One turn of a loop that waits for another thread: lets the others run.
void spin();

// Release and acquire on a flag that blocks share: what the block wrote before its last barrier,
// another block may read after acquired(), the thread that calls it at once, the others after their
// next barrier. The flag itself is the kernel's. Checked by the recording only.
void released(const void* flag);
void acquired(const void* flag);

// `value` of the lane whose index differs by `lane_mask`; 0xff bytes if that lane does not exist.
// Every lane of the warp takes part; in the last warp of a block, those that exist.
uint64_t shuffle_xor_bits(uint64_t value, unsigned lane_mask);

template <class T>
T shuffle_xor(T value, unsigned lane_mask) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = shuffle_xor_bits(bits, lane_mask);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace simt
