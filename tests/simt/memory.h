// What kernels do to memory, byte by byte: who may touch what, how often it is read, and how well
// the lanes of a warp access it together. What the tensors mean is unknown here.
//
// A recording spans several launches. Recorded accesses are checked at once (bounds, alignment,
// uninitialised bytes, races) and counted when the lanes of the warp next meet: the n-th access
// that each lane has made at one call site since they last met is one request.
//
// A race is an access to what another thread wrote (in shared memory, a write to what it read, too)
// with nothing that orders the two, whatever the schedule: within a block a barrier; between the
// blocks of a launch released() after a barrier of the one, acquired() and a barrier of the other.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace simt {

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

// Of all blocks of one launch.
struct SharedTraffic {
  uint64_t requests = 0;
  uint64_t conflicts = 0;  // turns beyond the first that the 32 banks of 4 bytes need for a request
};

struct LaunchTraffic {
  std::string kernel;
  unsigned blocks = 0;
  size_t shared_bytes = 0;             // dynamic shared memory of a block
  std::vector<TensorTraffic> tensors;  // in the order of start_recording()
  SharedTraffic shared;
};

// Records the launches to come on this OS thread, until stop_recording(). A recorded access that is
// wrong ends its launch with an error that names kernel, block, thread, tensor and offset.
void start_recording(std::vector<Tensor> tensors);
std::vector<LaunchTraffic> stop_recording();

}  // namespace simt
