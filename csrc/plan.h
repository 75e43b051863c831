// The plan: how one direction of a problem is run on a CUDA device, worked out before anything is
// launched. A pure function of the problem and the device's limits, in plain C++: testable on any
// machine. Launchers execute it as it is.
#pragma once

#include <optional>
#include <string>

#include "device_limits.h"
#include "se_types.h"
#include "tiling.h"

namespace seblock {

enum class Strategy : int {
  split,     // a launch per stage: any problem
  stream,    // one launch: squeezes run ahead, scales follow while x is still in L2
  resident,  // one launch: a block keeps its sample in shared memory from squeeze to scale
};
constexpr const char* kStrategyNames[] = {"split", "stream", "resident"};

enum class Direction : int { forward, backward };

// Bytes that one direction moves through global memory. A launch is taken to read what it needs of
// x and of the small tensors once, whatever several of its blocks share; the next launch reads it
// again. Without biases and counters. The SIMT harness counts the same bytes:
// tests/test_simt_traffic.py.
struct Traffic {
  int64_t x = 0;      // read of x, dy, residual, mask: for the first time in a launch
  int64_t again = 0;  // read of them, or of dresidual, once more in the launch that had them before
  int64_t window = 0;   // stream: bytes that the launch touches between the two
  int64_t weights = 0;  // read of W1 and W2: once per group of samples
  int64_t small = 0;    // read of [N, C], [N, R] and partial sums
  int64_t shared = 0;   // of those, split: read once more by every further tile of a product
  int64_t written = 0;
  int launches = 0;

  int64_t read() const { return x + weights + small; }
  int64_t from_l2() const { return again + shared; }  // beside what the other reads find there
};

// Of the workspace, in bytes: one part after the other, each a multiple of 16.
struct Workspace {
  int64_t counters = 0;  // stream: [1 + 2 N] uint32, zero before the launch: the next ticket;
                         // squeezes that are done; whether the gates are there
  int64_t dz2 = 0;       // backward: [N, C]
  int64_t dz1 = 0;       // backward: [N, R]
  int64_t shift = 0;     // backward: [N, C]  dpooled / S
  int64_t sums = 0;      // [parts, N, C]

  int64_t bytes() const { return counters + dz2 + dz1 + shift + sums; }
};

struct Plan {
  Strategy strategy = Strategy::split;
  bool vectors = false;      // accesses of 16 bytes, offsets of 32 bits; else single elements
  int group = 1;             // samples that share one read of the weights
  int lag = 0;               // stream: samples between squeeze and scale
  int blocks = 0;            // stream: of the launch
  bool overlap = false;      // split: a launch may begin before the one before it has ended
  int64_t shared_bytes = 0;  // resident: of a block
  Workspace workspace;
  Traffic traffic;
};

// What is to be chosen otherwise than the rule does.
struct Forced {
  std::optional<Strategy> strategy = {};
  std::optional<int> group = {};
  std::optional<int> lag = {};
  std::optional<int> blocks = {};
};

// Samples of a group of strategy split, at most; of float64 half as many. The others have one.
constexpr int kMostSamples = 8;

// Shared memory that every stage can do with: strategies stream and resident have it once.
constexpr int kScratchBytes = 16 * 1024;
constexpr int kTicketBytes = 16;  // stream: beside it

// `aligned`: every tensor the size of x starts on a 16-byte boundary. Neither strategy nor any
// other choice of the plan changes a bit of a sample's result: see tiling.h.
//
// Raises std::invalid_argument, with the reason, if what is forced cannot run the problem.
Plan plan(const Problem& problem, Direction direction, bool aligned, const DeviceLimits& limits,
          const Forced& forced = {});

std::string to_string(const Plan& plan);

}  // namespace seblock
