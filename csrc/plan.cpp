// The default rule, and what a plan needs and moves: see plan.h. No GPU has confirmed the rule: it
// is the outcome of a model, docs/design.md.
#include "plan.h"

#include <algorithm>
#include <limits>
#include <sstream>
#include <stdexcept>

namespace seblock {
namespace {

constexpr double kUsableL2 = 0.6;            // of its bytes, for what is to be found there again
constexpr int64_t kLargeX = 64 * kMiB;       // below, more of the L2 may be used
constexpr double kSmallBonus = 1.4;          // by so much
constexpr int64_t kStreamWeights = 100'000;  // bytes of W1 and W2 that one block works through
constexpr int64_t kMax32 = std::numeric_limits<int32_t>::max();

// The kernels count channels, and tasks, in 32 bits; below these sizes every number here, and in
// tiling.h, is far from the end of its type. No device has memory for more.
constexpr int64_t kMostChannels = int64_t{1} << 30;
constexpr int64_t kMostElements = int64_t{1} << 38;

void check_sizes(const Shape& shape) {
  const auto product_is_small = [](int64_t a, int64_t b) { return a <= kMostElements / b; };
  if (shape.c > kMostChannels || shape.r > kMostChannels)
    throw std::invalid_argument("C and R may be 2^30 at most");
  if (!product_is_small(shape.s, shape.c) || !product_is_small(shape.n, shape.c * shape.s) ||
      !product_is_small(shape.n, shape.r) || !product_is_small(shape.c, shape.r))
    throw std::invalid_argument(
        "input, the weights and [N, R] may have 2^38 elements each at most");
}

struct Sizes {
  int64_t x, sample, weights, per_channel, per_hidden, mask, element;

  explicit Sizes(const Problem& problem) : element(bytes_of(problem.dtype)) {
    const Shape& shape = problem.shape;
    const int64_t acc = acc_bytes_of(problem.dtype);
    sample = shape.c * shape.s * element;
    x = shape.n * sample;
    weights = 2 * shape.c * shape.r * bytes_of(problem.weight_dtype);
    per_channel = shape.n * shape.c * acc;
    per_hidden = shape.n * shape.r * acc;
    mask = mask_bytes(problem);
  }
};

bool whole_vectors(const Problem& problem, const Tiling& tiling) {
  const Shape& shape = problem.shape;
  if (tiling.layout == Layout::nhwc) return shape.c % tiling.vec == 0;
  return shape.s >= tiling.vec && shape.c * shape.s % tiling.vec == 0;
}

int64_t whole_accesses(int64_t bytes) { return ceil_div(bytes, kAccessBytes) * kAccessBytes; }

class Planner {
 public:
  Planner(const Problem& problem, Direction direction, bool aligned, const DeviceLimits& limits)
      : problem_(problem),
        shape_(problem.shape),
        forward_(direction == Direction::forward),
        aligned_(aligned),
        limits_(limits),
        tiling_(problem),
        sizes_(problem) {}

  // Why the strategy cannot run the problem, or null.
  const char* refusal(Strategy strategy) const {
    const int64_t tiles = std::max(reduce_tiles(1), expand_tiles(1));  // of a sample's products
    const int64_t of_launch = std::max<int64_t>({tiling_.strips, tiling_.runs, tiles});
    if (shape_.n * (strategy == Strategy::stream ? tasks() : of_launch) > kMax32)
      return "more than 2^31 tasks";
    if (strategy == Strategy::split) return nullptr;
    if (problem_.dtype == DType::float64) return "float64 is left to strategy split";
    if (!aligned_) return "a tensor does not start on a 16-byte boundary";
    if (!whole_vectors(problem_, tiling_)) return "channels or planes do not fill 16-byte vectors";
    if (shape_.c * shape_.s > kMax32) return "a sample has more than 2^31 elements";
    if (strategy == Strategy::stream) {
      if (limits_.capability < 80) return "needs compute capability 8.0";
    } else if (kScratchBytes + sizes_.sample > limits_.shared_bytes) {
      return "a sample does not fit in shared memory";
    }
    return nullptr;
  }

  Strategy choose() const {
    if (!refusal(Strategy::resident) && sizes_.weights <= 2 * sizes_.sample)
      return Strategy::resident;
    if (!refusal(Strategy::stream) && sizes_.weights <= kStreamWeights &&
        3 * in_flight(stream_blocks()) <= usable_l2())
      return Strategy::stream;
    return Strategy::split;
  }

  Plan fill(Strategy strategy, const Forced& forced) const {
    Plan out;
    out.strategy = strategy;
    out.vectors = problem_.dtype != DType::float64 && aligned_ &&
                  whole_vectors(problem_, tiling_) && shape_.c * shape_.s <= kMax32;
    out.group = checked("group", forced.group, most_samples(strategy),
                        strategy == Strategy::split ? split_group() : 1);
    const int64_t groups = ceil_div(shape_.n, out.group);
    if (strategy == Strategy::stream) {
      const int64_t most = std::max<int64_t>(shape_.n, 1);
      const auto lag = static_cast<int64_t>(reach() / static_cast<double>(sizes_.sample));
      out.lag = checked("lag", forced.lag, most, std::clamp<int64_t>(lag, 1, most));
      out.blocks = checked("blocks", forced.blocks, kMax32, stream_blocks());
      out.workspace.counters = whole_accesses((1 + 2 * shape_.n) * 4);
    } else if (forced.lag || forced.blocks) {
      throw std::invalid_argument("lag and blocks are numbers of strategy stream");
    }
    if (strategy == Strategy::resident) out.shared_bytes = kScratchBytes + sizes_.sample;
    out.overlap = strategy == Strategy::split && limits_.capability >= 90;
    out.workspace.sums = whole_accesses(tiling_.parts * sizes_.per_channel);
    if (!forward_) {
      out.workspace.dz2 = out.workspace.shift = whole_accesses(sizes_.per_channel);
      out.workspace.dz1 = whole_accesses(sizes_.per_hidden);
    }
    state_traffic(out, groups);
    return out;
  }

 private:
  int checked(const char* name, std::optional<int> forced, int64_t most, int64_t otherwise) const {
    if (!forced) return static_cast<int>(otherwise);
    if (*forced < 1 || *forced > most)
      throw std::invalid_argument(std::string(name) + " must be 1 to " + std::to_string(most) +
                                  ", got " + std::to_string(*forced));
    return *forced;
  }

  double usable_l2() const { return kUsableL2 * static_cast<double>(limits_.l2_bytes); }

  // Bytes of x that squeezes may be ahead: between two reads of x lies what is read of it and what
  // is written.
  double reach() const {
    const double bytes = usable_l2() / (forward_ ? 2.7 : 3.9);
    return sizes_.x <= kLargeX ? kSmallBonus * bytes : bytes;
  }

  int64_t tasks() const { return int64_t{tiling_.strips} + tiling_.runs; }  // stream: of a sample

  int64_t stream_blocks() const {
    const int64_t most = int64_t{limits_.multiprocessors} * limits_.stream_blocks;
    return std::max<int64_t>(std::min(shape_.n * tasks(), most), 1);
  }

  // Bytes of x that so many blocks are at.
  static int64_t in_flight(int64_t blocks) { return blocks * kTaskVectors * kAccessBytes; }

  int most_samples(Strategy strategy) const {
    if (strategy != Strategy::split) return 1;
    return problem_.dtype == DType::float64 ? kMostSamples / 2 : kMostSamples;  // registers
  }

  // Large enough that the weights are read less often than x, as long as there is a block for every
  // other multiprocessor.
  int split_group() const {
    int group = most_samples(Strategy::split);
    const auto blocks = [&](int samples) {
      return std::min(reduce_tiles(samples), expand_tiles(samples)) * ceil_div(shape_.n, samples);
    };
    while (group > 1 && 2 * blocks(group) < limits_.multiprocessors) group /= 2;
    return group;
  }

  void state_traffic(Plan& plan, int64_t groups) const {
    const bool split = plan.strategy == Strategy::split, stream = plan.strategy == Strategy::stream;
    const bool adds = problem_.tail != Tail::none, masks = problem_.tail == Tail::add_relu;
    const int64_t sums = tiling_.parts * sizes_.per_channel;
    const int64_t x = sizes_.x, channel = sizes_.per_channel, hidden = sizes_.per_hidden;
    Traffic& traffic = plan.traffic;
    traffic.weights = groups * sizes_.weights;
    traffic.again = stream ? x : 0;  // backward: of dy, or of dresidual
    const int64_t reads = split ? 2 : 1;
    if (forward_) {
      traffic.x = reads * x + (adds ? x : 0);
      traffic.small = sums + hidden + channel;  // z1, gate
      traffic.written = x + sizes_.mask + sums + 2 * channel + hidden;
      traffic.launches = shape_.n == 0 ? 0 : split ? 4 : 1;
      traffic.shared =
          (reduce_tiles(plan.group) - 1) * sums + (expand_tiles(plan.group) - 1) * hidden;
    } else {
      traffic.x = (reads + 1) * x + sizes_.mask;
      traffic.small = sums + 2 * channel + 2 * hidden  // gate, shift; z1, dz1
                      + 2 * channel + 2 * hidden;      // and the gradients: pooled, dz2; z1, dz1
      if (split) traffic.small += channel;             // gate in the scale too
      traffic.written = x + (masks ? x : 0) + sums + 2 * channel + hidden + sizes_.weights;
      traffic.launches = shape_.n == 0 ? 1 : split ? 5 : 2;
      traffic.shared = (reduce_tiles(plan.group) - 1) * (sums + channel) +
                       (expand_tiles(plan.group) - 1) * hidden;
    }
    if (!split) traffic.shared = 0;
    if (!stream) return;
    const int64_t tensors = forward_ ? (adds ? 3 : 2) : (masks ? 4 : 3);
    const int64_t ahead = std::min(plan.lag * sizes_.sample + in_flight(plan.blocks), x);
    traffic.window = tensors * ahead + (masks ? ahead / kAccessBytes : 0);
  }
  int64_t reduce_tiles(int samples) const {
    return Deal(order(), shape_.c, shape_.r).tiles(shape_.r, samples);
  }
  int64_t expand_tiles(int samples) const {
    return Deal(order(), shape_.r, shape_.c).tiles(shape_.c, samples);
  }
  Order order() const { return forward_ ? Order::rows : Order::columns; }

  const Problem& problem_;
  const Shape& shape_;
  const bool forward_, aligned_;
  const DeviceLimits& limits_;
  const Tiling tiling_;
  const Sizes sizes_;
};

}  // namespace

Plan plan(const Problem& problem, Direction direction, bool aligned, const DeviceLimits& limits,
          const Forced& forced) {
  check_sizes(problem.shape);
  const Planner planner(problem, direction, aligned, limits);
  const Strategy strategy = forced.strategy ? *forced.strategy : planner.choose();
  if (const char* reason = planner.refusal(strategy))
    throw std::invalid_argument(std::string("strategy ") +
                                kStrategyNames[static_cast<int>(strategy)] + ": " + reason);
  return planner.fill(strategy, forced);
}

std::string to_string(const Plan& plan) {
  std::ostringstream text;
  text << kStrategyNames[static_cast<int>(plan.strategy)] << ", "
       << (plan.vectors ? "16 bytes" : "one element") << " at a time, " << plan.group
       << " sample(s) to a read of the weights";
  if (plan.strategy == Strategy::stream)
    text << ", " << plan.blocks << " blocks, scales " << plan.lag << " sample(s) behind";
  if (plan.strategy == Strategy::resident)
    text << ", " << plan.shared_bytes << " bytes of shared memory per block";
  const Traffic& traffic = plan.traffic;
  text << ": " << traffic.launches << " launch(es), reads " << traffic.read() << " bytes";
  if (traffic.again)
    text << " (and " << traffic.again << " again, at most " << traffic.window << " bytes later)";
  text << ", writes " << traffic.written << ", workspace " << plan.workspace.bytes();
  return text.str();
}

}  // namespace seblock
