// The plan: how one problem is run on a CUDA device, worked out before anything is launched.
// A pure function of the shape, in plain C++: testable on any machine. Launchers execute it as it
// is.
#pragma once

#include <string>

#include "se_types.h"

namespace seblock {

enum class Strategy : int {
  split,  // squeeze -> excite -> scale, one launch each (the excite is two)
};

// Bytes that one direction moves through global memory. A launch is taken to read what it needs of
// x and of the small tensors once, whatever several of its blocks share; the next launch reads it
// again. Without the biases. The SIMT harness counts the same bytes: tests/test_simt_traffic.py.
struct Traffic {
  int64_t x = 0;        // read of x and dy
  int64_t weights = 0;  // read of W1 and W2, once per group of kSamples samples
  int64_t small = 0;    // read of [N, C], [N, R] and partial sums
  int64_t written = 0;
  int launches = 0;

  int64_t read() const { return x + weights + small; }
};

struct SePlan {
  Strategy strategy = Strategy::split;
  int vec = 1;     // elements of x per access: 16 bytes where alignment allows, else one element
  int lanes = 1;   // squeeze, nchw: threads per plane; nhwc: threads along the channels
  int splits = 1;  // squeeze: blocks that share one sum over space; their parts are added in order
  int64_t forward_workspace_bytes = 0;
  int64_t backward_workspace_bytes = 0;
  Traffic forward;
  Traffic backward;
};

constexpr int kBlockThreads = 256;  // of the squeeze and of every other kernel
constexpr int kAccessBytes = 16;    // the widest global access
constexpr int kSamples = 8;         // samples that share one read of the weights in the excite

// `aligned`: every tensor the size of x starts on a 16-byte boundary.
// Nothing in the plan but workspace and traffic depends on N: a sample's bits do not depend on its
// batch.
SePlan plan(const Problem& problem, bool aligned);

std::string to_string(const SePlan& plan);

}  // namespace seblock
