// The plan: how one problem is run on a CUDA device, worked out before anything is launched.
// A pure function of the problem and the device's limits, in plain C++: testable on any machine.
// Launchers execute it as it is.
#pragma once

#include <optional>
#include <string>

#include "device_limits.h"
#include "se_types.h"

namespace seblock {

enum class Strategy : int {
  split,     // S: squeeze -> excite -> scale, one launch each (the excite is two)
  stream,    // T: one launch; blocks squeeze ahead and scale behind, x is still in L2
  resident,  // R: one launch; a block keeps its samples in shared memory from squeeze to scale
};
constexpr const char* kStrategyNames[] = {"split", "stream", "resident"};

// Bytes that one direction moves through global memory. A launch is taken to read what it needs of
// x and of the small tensors once, whatever several of its blocks share; the next launch reads it
// again. Without biases and counters. The SIMT harness counts the same bytes:
// tests/test_simt_traffic.py.
struct Traffic {
  int64_t x = 0;      // read of x, dy, residual, mask: for the first time in a launch
  int64_t again = 0;  // read of them, or of dresidual, once more in the launch that had them before
  int64_t window = 0;   // stream: bytes that the launch touches between the two
  int64_t weights = 0;  // read of W1 and W2, once per group of samples (and row slice)
  int64_t small = 0;    // read of [N, C], [N, R] and partial sums
  int64_t written = 0;
  int launches = 0;

  int64_t read() const { return x + weights + small; }
};

// Strategy split.
struct SplitPlan {
  int lanes = 1;   // squeeze, nchw: threads per plane; nhwc: threads along the channels
  int splits = 1;  // squeeze: blocks that share one sum over space; their parts are added in order
};

// Strategies stream and resident: a task is a group of samples x a slice of their channels and, in
// nhwc, of their rows. Tasks are numbered group by group, row slice by row slice.
struct SlicePlan {
  int samples = 1;   // of a group; the last group may have fewer
  int channels = 0;  // of a slice; the last slice may have fewer
  int channel_slices = 1;
  int rows = 0;  // positions of a slice; nchw: S
  int row_slices = 1;
  int lanes = 1;  // squeeze, nchw: threads per plane; nhwc: vectors per row of a slice
  int tasks = 0;  // of all groups
  int lag = 0;    // stream: a block that squeezes task t then scales task t - lag
  int blocks = 0;
  int64_t shared_bytes = 0;  // per block

  int slices() const { return channel_slices * row_slices; }
};

struct SePlan {
  Strategy strategy = Strategy::split;
  int vec = 1;  // elements of x per access: 16 bytes where alignment allows, else one element
  SplitPlan split;
  SlicePlan slice;
  int64_t forward_workspace_bytes = 0;
  int64_t backward_workspace_bytes = 0;
  Traffic forward;
  Traffic backward;
};

constexpr int kBlockThreads = 256;  // of every kernel
constexpr int kAccessBytes = 16;    // the widest global access
constexpr int kSamples = 8;         // samples that share one read of the weights, at most

// Blocks of strategies stream and resident that share a multiprocessor: with more, ptxas spills.
constexpr int kBlocksPerMultiprocessor = 2;

// `aligned`: every tensor the size of x starts on a 16-byte boundary. `forced`: this strategy and
// no other.
//
// How a sample is divided into slices does not depend on N; which strategy runs does. So a sample's
// bits are the same in every batch for which the strategy is.
//
// Raises std::invalid_argument, with the reason, if the forced strategy cannot run the problem.
SePlan plan(const Problem& problem, bool aligned, const DeviceLimits& limits,
            std::optional<Strategy> forced = {});

std::string to_string(const SePlan& plan);

// The workspaces of strategy stream, one part after the other; the launchers and the plan go by the
// same list.
struct StreamWorkspace {
  int64_t counters;  // bytes: [1 + groups] uint32, the ticket and how many slices are published;
                     // zero before the launch
  int64_t partial;   // bytes: [tasks, samples, R] float32, each slice's part of the first product
  int64_t sums;      // bytes: [row slices, N, C] float32, if there is more than one row slice

  StreamWorkspace(const Shape& shape, const SlicePlan& slice);
  int64_t bytes() const { return counters + partial + sums; }
};

// In units of float32, of the shared memory of strategies stream and resident.
struct SliceShared {
  static constexpr int kScratch = kSamples * kBlockThreads + 32;
  static constexpr int kTickets = 4;

  int sums;     // [samples, channels]: the squeeze's sums; backward, later, shift
  int hidden;   // [samples, R]
  int factors;  // [samples, channels]: gate
  int scratch;  // [kScratch]
  int ticket;   // [kTickets]
  int stash;    // resident: the slice itself, 16-byte vectors

  SliceShared(const Shape& shape, const SlicePlan& slice)
      : sums(0),
        hidden(slice.samples * slice.channels),
        factors(hidden + slice.samples * static_cast<int>(shape.r)),
        scratch(factors + slice.samples * slice.channels),
        ticket(scratch + kScratch),
        stash((ticket + kTickets + 3) / 4 * 4) {}
};

}  // namespace seblock
