// The SIMT harness: runs a kernel written for a GPU on one CPU thread, one fiber per GPU thread.
//
// A kernel reaches the hardware only through the functions below; csrc/cuda/device/ maps its own
// names to them. What a GPU leaves undefined is an error here, with kernel, block and thread:
//
//   squeeze: divergence: block 3: from thread 0 at sync_threads; from thread 32 exited; ...
//
// A fiber runs until it waits, so the code between two waits is atomic and memory is sequentially
// consistent; what a weaker order would make of it is checked by a recording. What the kernels
// compute is unknown here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace simt {

constexpr unsigned kWarpThreads = 32;
constexpr unsigned kMaxBlockThreads = 1024;

struct Launch {
  std::string kernel;  // the name in error messages
  unsigned blocks;
  unsigned threads;     // per block
  size_t shared_bytes;  // dynamic shared memory of a block
};

// How the threads are interleaved. With seed 0, in order: blocks by index, threads by index, each
// until it waits. With any other seed, blocks start in random order, random threads are resumed,
// and about half of the threads, or of groups of them, are kept behind for as long as the others
// can go on without them.
struct Schedule {
  unsigned resident = 1;  // blocks alive at a time
  uint64_t seed = 0;      // equal seeds give equal interleavings
  // Rounds in which every thread that can run only spins, before that counts as a stuck wait.
  unsigned spin_rounds = 10000;
};

// Of the launches to come on this OS thread; tests assign to it.
inline thread_local Schedule schedule;

// Runs `body` once per thread of the grid. Throws std::runtime_error for an exception in a thread,
// for divergence and for a stuck wait, after every thread's frames have been unwound (so a function
// that waits must not be noexcept). The harness is as new afterwards.
void launch(const Launch& launch, const std::function<void()>& body);

// The rest is for the body of a launch.

// Reports to the recording an access to global or shared memory that is about to happen; nothing
// without one. The call site tells one request of a warp from another: inline what lies between it
// and the kernel.
//
// Release and acquire are reports of a flag that blocks share: what the block wrote before its last
// barrier, another block may access after acquiring, the thread that does so at once, the others
// after their next barrier. The flag itself is the kernel's.
enum class Access { read, write, release, acquire };
void access(const void* address, size_t bytes, Access access);

unsigned thread_index();
unsigned block_index();
unsigned grid_blocks();

// Dynamic shared memory, aligned to 16 bytes, as on a GPU. Every byte is 0xff before each block:
// NaN in any floating-point type. Its size is exact, so that AddressSanitizer sees one byte too
// many.
void* shared_memory();

// A barrier for every thread of the block: none may have exited or wait elsewhere.
void sync_threads();

// One turn of a loop that waits for another thread: lets the others run.
void spin();

// The value, of up to 8 bytes, of the lane whose index differs by `lane_mask`; 0xff bytes if that
// lane does not exist. Every lane of the warp takes part; in the last warp of a block, those that
// exist.
void shuffle_xor_bytes(void* value, size_t bytes, unsigned lane_mask);

template <class T>
T shuffle_xor(T value, unsigned lane_mask) {
  shuffle_xor_bytes(&value, sizeof value, lane_mask);
  return value;
}

// What kernels do to memory, byte by byte: who may touch what, how often it is read, and how well
// the lanes of a warp access it together. What the tensors mean is unknown here.
//
// A recording spans several launches. Recorded accesses are checked at once (bounds, alignment,
// uninitialised bytes, races) and counted when the lanes of the warp next meet: the n-th access
// that each lane has made at one call site since they last met is one request.
//
// A race is an access to what another thread wrote, or a write to what it read last, with nothing
// that orders the two, whatever the schedule: within a block a barrier; between the blocks of a
// launch a release after a barrier of the one, an acquire and a barrier of the other.

struct Tensor {
  std::string name;
  uintptr_t address;
  size_t bytes;
  unsigned element;  // bytes; no access may split one
  bool output;       // may be written; may be read where it has been
};

// Of one tensor in one launch. Bytes that several lanes of one request ask for count once.
struct TensorTraffic {
  uint64_t first_read = 0;        // bytes read for the first time in the recording
  uint64_t read_again = 0;        // read in an earlier launch, and for the first time in this one
  uint64_t read_repeatedly = 0;   // read before in this launch
  uint64_t written = 0;           // bytes, each time they are written
  uint64_t largest_distance = 0;  // between two touches of a byte, see below
  uint64_t sectors = 0;           // of 32 bytes, that the requests touch
  uint64_t least_sectors = 0;     // that would have held the bytes they ask for
};

// A distance is in bytes that were read for the first time in their launch, or written, by any
// request in between: what a cache would have had to hold on to, repeats within a launch left out.

struct LaunchTraffic {
  Launch launch;
  std::vector<TensorTraffic> tensors;  // in the order of start_recording()
  // To shared memory, of all blocks.
  uint64_t shared_requests = 0;
  uint64_t bank_conflicts = 0;  // turns beyond the first of a request, for 32 banks of 4 bytes
};

// Records the launches to come on this OS thread, until stop_recording(). A recorded access that is
// wrong ends its launch with an error that names kernel, block, thread, tensor and offset.
void start_recording(const std::vector<Tensor>& tensors);
std::vector<LaunchTraffic> stop_recording();

}  // namespace simt
