// The plan of strategy S (split): see plan.h.
#include "plan.h"

#include <algorithm>
#include <sstream>

namespace seblock {
namespace {

// One block streams at most about this much of x into one sum before another block shares the work.
// A model, not a measurement: 132 blocks of 256 KB are 33 MB, so tensors large enough to fill a GPU
// give every multiprocessor several blocks even in nhwc with few channels.
constexpr int64_t kBytesPerSplit = 256 * 1024;
constexpr int64_t kMaxSplits = 1024;

// nhwc: a block reads rows of up to 256 bytes of channels, eight sectors side by side. A model, not
// a measurement.
constexpr int64_t kRowBytes = 256;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t power_of_two_at_least(int64_t value) {
  int64_t power = 1;
  while (power < value) power *= 2;
  return power;
}

// nchw: enough threads that each has a few vectors of the plane in flight, and no idle warps on
// small planes.
int plane_lanes(int64_t vectors_per_plane) {
  if (vectors_per_plane >= 4 * kBlockThreads) return kBlockThreads;
  return static_cast<int>(std::min<int64_t>(32, power_of_two_at_least(vectors_per_plane)));
}

}  // namespace

SePlan plan(const Problem& problem, bool aligned) {
  const Shape& shape = problem.shape;
  const int64_t size = bytes_of(problem.dtype);
  const int64_t acc_size = acc_bytes_of(problem.dtype);
  const bool nchw = problem.layout == Layout::nchw;
  const int vec = static_cast<int>(kAccessBytes / size);

  SePlan out;
  out.vec = aligned && (nchw || shape.c % vec == 0) ? vec : 1;

  int64_t bytes_per_row;  // that one block would stream without a split
  if (nchw) {
    out.lanes = plane_lanes(ceil_div(shape.s, out.vec));
    bytes_per_row = shape.s * size;
  } else {
    const int64_t widest = kRowBytes / (out.vec * size);  // 16 vectors, or one element per thread
    out.lanes = static_cast<int>(
        std::min<int64_t>({widest, 32, power_of_two_at_least(ceil_div(shape.c, out.vec))}));
    bytes_per_row = shape.s * out.lanes * out.vec * size;
  }
  out.splits = static_cast<int>(std::clamp<int64_t>(ceil_div(bytes_per_row, kBytesPerSplit), 1,
                                                    std::min(kMaxSplits, shape.s)));

  const int64_t x = shape.n * shape.c * shape.s * size;
  const int64_t per_channel = shape.n * shape.c * acc_size;
  const int64_t per_hidden = shape.n * shape.r * acc_size;
  const int64_t partial = out.splits * per_channel;
  const int64_t weights = 2 * shape.c * shape.r * bytes_of(problem.weight_dtype);

  out.forward_workspace_bytes = partial;
  out.backward_workspace_bytes = partial + 2 * per_channel + per_hidden;  // + dz2, shift and dz1

  const int64_t groups = ceil_div(shape.n, kSamples);
  out.forward.x = 2 * x;  // squeeze, scale
  out.forward.weights = groups * weights;
  out.forward.small = partial + per_hidden + per_channel;            // z1, gate
  out.forward.written = x + partial + 2 * per_channel + per_hidden;  // y, pooled, gate, z1
  out.forward.launches = shape.n ? 4 : 0;
  out.backward.x = 3 * x;  // squeeze of dy * x, scale of dy
  out.backward.weights = groups * weights;
  out.backward.small =
      partial + 5 * per_channel + 4 * per_hidden;  // gate, shift, dz2, pooled; z1, dz1: twice
  out.backward.written = x + partial + 2 * per_channel + per_hidden  // dx, dz2, shift, dz1
                         + weights;
  out.backward.launches = shape.n ? 5 : 1;  // without samples: zeros for the weight gradients
  return out;
}

std::string to_string(const SePlan& plan) {
  std::ostringstream text;
  text << "strategy S (split): squeeze -> excite -> scale\n"
       << "  access       " << plan.vec << " element(s) of x at a time\n"
       << "  squeeze      " << plan.lanes << " threads per sum, " << plan.splits
       << " block(s) per sum\n"
       << "  forward      " << plan.forward.launches << " launches, reads " << plan.forward.read()
       << " bytes, writes " << plan.forward.written << ", workspace "
       << plan.forward_workspace_bytes << "\n"
       << "  backward     " << plan.backward.launches << " launches, reads " << plan.backward.read()
       << " bytes, writes " << plan.backward.written << ", workspace "
       << plan.backward_workspace_bytes;
  return text.str();
}

}  // namespace seblock
