// The choice of a strategy, and the plan of strategy S (split): see plan.h.
#include "plan.h"

#include <algorithm>
#include <sstream>
#include <stdexcept>

#include "plan_slice.h"

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

// Strategy S, which runs every problem.
SePlan split_plan(const Problem& problem, bool aligned) {
  const Shape& shape = problem.shape;
  const int64_t size = bytes_of(problem.dtype);
  const int64_t acc_size = acc_bytes_of(problem.dtype);
  const bool nchw = problem.layout == Layout::nchw;
  const int vec = static_cast<int>(kAccessBytes / size);

  SePlan out;
  out.vec = aligned && (nchw || shape.c % vec == 0) ? vec : 1;

  int64_t bytes_per_row;  // that one block would stream without a split
  if (nchw) {
    out.split.lanes = plane_lanes(ceil_div(shape.s, out.vec));
    bytes_per_row = shape.s * size;
  } else {
    const int64_t widest = kRowBytes / (out.vec * size);  // 16 vectors, or one element per thread
    out.split.lanes = static_cast<int>(
        std::min<int64_t>({widest, 32, power_of_two_at_least(ceil_div(shape.c, out.vec))}));
    bytes_per_row = shape.s * out.split.lanes * out.vec * size;
  }
  out.split.splits = static_cast<int>(std::clamp<int64_t>(ceil_div(bytes_per_row, kBytesPerSplit),
                                                          1, std::min(kMaxSplits, shape.s)));

  const bool adds = problem.tail != Tail::none;
  const bool masks = problem.tail == Tail::add_relu;
  const int64_t mask = mask_bytes(problem);
  const int64_t x = shape.n * shape.c * shape.s * size;
  const int64_t per_channel = shape.n * shape.c * acc_size;
  const int64_t per_hidden = shape.n * shape.r * acc_size;
  const int64_t partial = out.split.splits * per_channel;
  const int64_t weights = 2 * shape.c * shape.r * bytes_of(problem.weight_dtype);

  out.forward_workspace_bytes = partial;
  out.backward_workspace_bytes = partial + 2 * per_channel + per_hidden;  // + dz2, shift and dz1

  const int64_t groups = ceil_div(shape.n, kSamples);
  out.forward.x = 2 * x + (adds ? x : 0);  // squeeze, scale; residual
  out.forward.weights = groups * weights;
  out.forward.small = partial + per_hidden + per_channel;                   // z1, gate
  out.forward.written = x + mask + partial + 2 * per_channel + per_hidden;  // y, pooled, gate, z1
  out.forward.launches = shape.n ? 4 : 0;
  out.backward.x = 3 * x + mask;  // squeeze of dy * x, scale of dy or dresidual
  out.backward.weights = groups * weights;
  out.backward.small =
      partial + 5 * per_channel + 4 * per_hidden;  // gate, shift, dz2, pooled; z1, dz1: twice
  out.backward.written = x + (masks ? x : 0) + partial + 2 * per_channel +
                         per_hidden         // dz2, shift,
                         + weights;         // dz1
  out.backward.launches = shape.n ? 5 : 1;  // without samples: zeros for the weight gradients
  return out;
}

// Fills in strategy `wanted`, or says why it cannot run the problem.
const char* fill(const Problem& problem, bool aligned, const DeviceLimits& limits, Strategy wanted,
                 SePlan& out) {
  if (wanted == Strategy::split) {
    out = split_plan(problem, aligned);
    return nullptr;
  }
  SePlan chosen;
  chosen.strategy = wanted;
  chosen.vec = static_cast<int>(kAccessBytes / bytes_of(problem.dtype));
  const char* reason = wanted == Strategy::stream
                           ? slice_for_stream(problem, aligned, limits, chosen.slice)
                           : slice_for_resident(problem, aligned, limits, chosen.slice);
  if (reason) return reason;
  state_slice_traffic(problem, chosen);
  out = chosen;
  return nullptr;
}

// A block of strategy R reads all weights for its samples, at the speed of one multiprocessor: only
// where they do not outweigh x by far. A model until a GPU has measured it.
constexpr int64_t kResidentWeights = 2;  // bytes of weights per byte of x, at most

}  // namespace

SePlan plan(const Problem& problem, bool aligned, const DeviceLimits& limits,
            std::optional<Strategy> forced) {
  SePlan out;
  if (forced) {
    if (const char* reason = fill(problem, aligned, limits, *forced, out))
      throw std::invalid_argument(std::string("strategy ") +
                                  kStrategyNames[static_cast<int>(*forced)] + ": " + reason);
    return out;
  }
  const Shape& shape = problem.shape;
  const int64_t weights = 2 * shape.c * shape.r * bytes_of(problem.weight_dtype);
  if (!fill(problem, aligned, limits, Strategy::resident, out)) {
    const int64_t x = out.slice.samples * shape.c * shape.s * bytes_of(problem.dtype);
    if (weights <= kResidentWeights * x) return out;
  }
  if (!fill(problem, aligned, limits, Strategy::stream, out)) return out;
  return split_plan(problem, aligned);
}

namespace {

void describe(std::ostringstream& text, const char* direction, const Traffic& traffic,
              int64_t workspace) {
  text << "  " << direction << traffic.launches << " launch(es), reads " << traffic.read()
       << " bytes";
  if (traffic.again) {
    text << " (and " << traffic.again << " once more, at most " << traffic.window
         << " bytes later)";
  }
  text << ", writes " << traffic.written << ", workspace " << workspace << "\n";
}

}  // namespace

std::string to_string(const SePlan& plan) {
  std::ostringstream text;
  const SlicePlan& slice = plan.slice;
  switch (plan.strategy) {
    case Strategy::split:
      text << "strategy S (split): squeeze -> excite -> scale\n"
           << "  squeeze   " << plan.split.lanes << " threads per sum, " << plan.split.splits
           << " block(s) per sum\n";
      break;
    case Strategy::stream:
      text << "strategy T (stream): squeeze ahead, scale behind\n"
           << "  tasks     " << slice.tasks << " on " << slice.blocks << " blocks, lag "
           << slice.lag << "\n";
      break;
    case Strategy::resident:
      text << "strategy R (resident): a block keeps its samples in shared memory\n"
           << "  blocks    " << slice.blocks << "\n";
      break;
  }
  if (plan.strategy != Strategy::split) {
    text << "  task      " << slice.samples << " sample(s) x " << slice.channels << " channels x "
         << slice.rows << " positions, " << slice.slices() << " per group\n"
         << "  shared    " << slice.shared_bytes << " bytes per block\n";
  }
  text << "  access    " << plan.vec << " element(s) of x at a time\n";
  describe(text, "forward   ", plan.forward, plan.forward_workspace_bytes);
  describe(text, "backward  ", plan.backward, plan.backward_workspace_bytes);
  return text.str();
}

}  // namespace seblock
