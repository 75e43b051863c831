// The plans of strategies T (stream) and R (resident): how samples are divided into tasks.
#include "plan_slice.h"

#include <algorithm>
#include <limits>

namespace seblock {
namespace {

// Every threshold here is a model until a GPU has measured it.

// x of one task: long enough to hide what a task costs besides (a ticket, two sums over the block,
// a wait), short enough that what all blocks hold between squeeze and scale stays in a quarter of
// L2.
constexpr int64_t kTaskBytes = 32 * kKiB;
constexpr int64_t kLargestTaskBytes = 4 * kTaskBytes;

// nhwc: the piece of a row that is read side by side, at most and, with enough channels, at least.
constexpr int64_t kRowBytes = 256;
constexpr int64_t kLeastRowBytes = 128;

constexpr int64_t kSharedBytes = 48 * kKiB;  // that a block has without asking for more
constexpr int kMaxChannels = 1024;           // of a slice, for the shared memory's sake

constexpr int kWarp = 32;

int64_t round_up(int64_t value, int64_t multiple) { return ceil_div(value, multiple) * multiple; }

int64_t shared_bytes(const Shape& shape, const SlicePlan& slice) {
  return SliceShared(shape, slice).stash * int64_t{sizeof(float)};
}

// The fewest channels whose planes are whole vectors.
int64_t channels_per_vector_run(int64_t plane_bytes) {
  int64_t channels = 1;
  while (channels * plane_bytes % kAccessBytes) channels *= 2;
  return channels;
}

// nchw: threads that sum one plane, so that no warp stands idle for long.
int plane_lanes(int64_t plane_bytes, int64_t planes) {
  const int64_t vectors =
      plane_bytes % kAccessBytes ? plane_bytes / kAccessBytes + 2 : plane_bytes / kAccessBytes;
  if (vectors >= 4 * kWarp && planes * kWarp < kBlockThreads) return kBlockThreads;
  int lanes = 1;
  while (lanes < std::min<int64_t>(vectors, kWarp)) lanes *= 2;
  return lanes;
}

// Samples whose x outweighs the weights that a task reads for them, twice if possible.
int64_t samples_wanted(int64_t weight_bytes, int64_t x_bytes) {
  return std::clamp<int64_t>(ceil_div(2 * weight_bytes, x_bytes), 1, kSamples);
}

struct Sizes {
  int64_t element, vec, weights_per_channel, sample;  // bytes but for vec, which is elements

  explicit Sizes(const Problem& problem)
      : element(bytes_of(problem.dtype)),
        vec(kAccessBytes / element),
        weights_per_channel(2 * problem.shape.r * bytes_of(problem.weight_dtype)),
        sample(problem.shape.c * problem.shape.s * element) {}
};

void divide_nchw(const Problem& problem, const Sizes& sizes, SlicePlan& slice) {
  const int64_t plane = problem.shape.s * sizes.element;
  const int64_t unit = channels_per_vector_run(plane);
  const int64_t samples = samples_wanted(sizes.weights_per_channel, plane);
  const int64_t most = std::min<int64_t>(problem.shape.c, kMaxChannels);
  const int64_t wanted = std::clamp<int64_t>(kTaskBytes / (plane * samples), 1, most);
  const int64_t slices = ceil_div(problem.shape.c, round_up(wanted, unit));
  slice.channels = static_cast<int>(round_up(ceil_div(problem.shape.c, slices), unit));
  slice.samples = static_cast<int>(samples);
  slice.rows = static_cast<int>(problem.shape.s);
}

void divide_nhwc(const Problem& problem, const Sizes& sizes, SlicePlan& slice) {
  const int64_t vectors = problem.shape.c / sizes.vec;
  const int64_t column = problem.shape.s * kAccessBytes;  // one vector of every position
  const int64_t samples =
      std::min(samples_wanted(sizes.vec * sizes.weights_per_channel, column),
               std::max<int64_t>(kLargestTaskBytes / (column * kLeastRowBytes / kAccessBytes), 1));
  // Narrower rows where several samples are read at once.
  const int64_t widest =
      std::clamp(2 * kTaskBytes / (samples * problem.shape.s), kLeastRowBytes, kRowBytes);
  const int64_t slices = ceil_div(vectors * kAccessBytes, samples > 1 ? widest : kRowBytes);
  // Whole sectors of 32 bytes, where the rows consist of such.
  slice.lanes = static_cast<int>(round_up(ceil_div(vectors, slices), vectors % 2 ? 1 : 2));
  slice.channels = static_cast<int>(slice.lanes * sizes.vec);
  slice.samples = static_cast<int>(samples);
  slice.rows = static_cast<int>(problem.shape.s);
  if (samples > 1) return;
  const int64_t weights = slice.channels * sizes.weights_per_channel;
  const int64_t bytes = std::clamp(2 * weights, kTaskBytes, kLargestTaskBytes);
  const int64_t row_slices =
      ceil_div(problem.shape.s, std::max<int64_t>(bytes / (slice.lanes * kAccessBytes), 1));
  slice.rows = static_cast<int>(ceil_div(problem.shape.s, row_slices));
}

// Why the slices' kernels cannot serve the problem, or null.
const char* unsuitable(const Problem& problem, bool aligned) {
  const int64_t element = bytes_of(problem.dtype);
  if (problem.dtype == DType::float64) return "float64 is left to strategy split";
  if (!aligned) return "a tensor does not start on a 16-byte boundary";
  const int64_t unit = problem.layout == Layout::nchw
                           ? channels_per_vector_run(problem.shape.s * element)
                           : kAccessBytes / element;
  const Shape& shape = problem.shape;
  if (shape.c % unit) return "the channels do not fill 16-byte vectors";
  constexpr int64_t kMost = std::numeric_limits<int>::max();
  // What the kernels add to an offset before they compare it: the rows of a whole block, in flight.
  constexpr int64_t kRowsAhead = 4 * kBlockThreads;
  if (shape.c > kMost / (kSamples * shape.s + kRowsAhead) || shape.c > kMost / shape.r)
    return "a group of samples, or a weight, has more than 2^31 elements";
  // far above any shared memory, far below where SliceShared's sums would wrap around
  if (shape.r > kMost / (4 * kSamples)) return "the reduced channels do not fit in shared memory";
  return nullptr;
}

// Fewer samples to a group, as long as `fits` says no; false if not even one fits.
template <typename Fits>
bool shrink_until(SlicePlan& slice, const Fits& fits) {
  while (!fits() && slice.samples > 1) --slice.samples;
  return fits();
}

}  // namespace

StreamWorkspace::StreamWorkspace(const Shape& shape, const SlicePlan& slice)
    : counters(round_up((1 + ceil_div(shape.n, slice.samples)) * int64_t{sizeof(uint32_t)},
                        kAccessBytes)),
      partial(int64_t{slice.tasks} * slice.samples * shape.r * int64_t{sizeof(float)}),
      sums(slice.row_slices > 1 ? slice.row_slices * shape.n * shape.c * int64_t{sizeof(float)}
                                : 0) {}

const char* slice_for_stream(const Problem& problem, bool aligned, const DeviceLimits& limits,
                             SlicePlan& slice) {
  if (const char* reason = unsuitable(problem, aligned)) return reason;
  const Shape& shape = problem.shape;
  const Sizes sizes(problem);
  const bool nchw = problem.layout == Layout::nchw;
  nchw ? divide_nchw(problem, sizes, slice) : divide_nhwc(problem, sizes, slice);
  slice.channel_slices = static_cast<int>(ceil_div(shape.c, slice.channels));
  slice.row_slices = static_cast<int>(ceil_div(shape.s, slice.rows));
  if (nchw) slice.lanes = plane_lanes(shape.s * sizes.element, slice.channels);

  // Groups no larger than leaves every multiprocessor two tasks.
  const int64_t share = shape.n * slice.slices() / (2 * limits.multiprocessors);
  const int64_t most = std::clamp<int64_t>(shape.n, 1, slice.samples);
  slice.samples = static_cast<int>(std::clamp<int64_t>(share, 1, most));
  if (!shrink_until(slice, [&] { return shared_bytes(shape, slice) <= kSharedBytes; }))
    return "the reduced channels do not fit in shared memory";
  slice.shared_bytes = shared_bytes(shape, slice);

  const int64_t tasks = ceil_div(shape.n, slice.samples) * slice.slices();
  if (tasks > std::numeric_limits<int>::max() / 2) return "too many tasks";
  slice.tasks = static_cast<int>(tasks);
  const int resident = limits.multiprocessors * kBlocksPerMultiprocessor;
  slice.blocks = std::min(slice.tasks, resident);
  // No less than a group's slices, so that a block waits for lower tickets only. A quarter of the
  // resident blocks more, so that those tickets are published, most of the time.
  slice.lag = std::min(slice.slices() - 1 + resident / 4, slice.tasks);
  return nullptr;
}

const char* slice_for_resident(const Problem& problem, bool aligned, const DeviceLimits& limits,
                               SlicePlan& slice) {
  if (const char* reason = unsuitable(problem, aligned)) return reason;
  const Shape& shape = problem.shape;
  const Sizes sizes(problem);
  // Two blocks share a multiprocessor: one loads while the other stores.
  const int64_t room =
      std::min(limits.shared_bytes, limits.shared_bytes_per_multiprocessor / 2 - kKiB);
  if (sizes.sample > room || shape.c > kMaxResidentChannels || shape.r > kMaxResidentChannels)
    return "a sample does not fit in shared memory";
  slice.channels = static_cast<int>(shape.c);
  slice.channel_slices = slice.row_slices = 1;
  slice.rows = static_cast<int>(shape.s);
  slice.lanes = problem.layout == Layout::nchw ? plane_lanes(shape.s * sizes.element, shape.c)
                                               : static_cast<int>(shape.c / sizes.vec);
  if (slice.lanes > kBlockThreads) return "a row has more vectors than a block has threads";
  const int64_t weights = shape.c * sizes.weights_per_channel;
  const int64_t share = shape.n / (2 * limits.multiprocessors);  // leaves every one two blocks
  slice.samples =
      static_cast<int>(std::clamp<int64_t>(share, 1, samples_wanted(weights, sizes.sample)));
  const auto bytes = [&] { return shared_bytes(shape, slice) + slice.samples * sizes.sample; };
  if (!shrink_until(slice, [&] { return bytes() <= room; }))
    return "a sample does not fit in shared memory";
  slice.shared_bytes = bytes();
  slice.tasks = static_cast<int>(ceil_div(shape.n, slice.samples));
  slice.blocks = slice.tasks;
  slice.lag = 0;
  return nullptr;
}

void state_slice_traffic(const Problem& problem, SePlan& plan) {
  const Shape& shape = problem.shape;
  const SlicePlan& slice = plan.slice;
  const bool stream = plan.strategy == Strategy::stream;
  const bool adds = problem.tail != Tail::none;
  const bool masks = problem.tail == Tail::add_relu;
  const int64_t x = shape.n * shape.c * shape.s * bytes_of(problem.dtype);
  const int64_t mask = mask_bytes(problem);
  const int64_t per_channel = shape.n * shape.c * int64_t{sizeof(float)};
  const int64_t per_hidden = shape.n * shape.r * int64_t{sizeof(float)};
  const int64_t weights = 2 * shape.c * shape.r * bytes_of(problem.weight_dtype);
  const int64_t groups = ceil_div(shape.n, slice.samples);
  // What the slices tell each other: written once, read once as far as the launch is concerned.
  const int64_t exchanged = stream ? slice.slices() * per_hidden +
                                         (slice.row_slices > 1 ? slice.row_slices * per_channel : 0)
                                   : 0;
  const int64_t task =
      int64_t{slice.samples} * slice.channels * slice.rows * bytes_of(problem.dtype);
  const int64_t task_mask = masks ? ceil_div(task, kAccessBytes) : 0;

  Traffic& forward = plan.forward;
  forward.x = x + (adds ? x : 0);
  forward.again = stream ? x : 0;
  forward.window = stream ? (slice.lag + 1) * ((adds ? 3 : 2) * task + task_mask) : 0;
  forward.weights = groups * slice.row_slices * weights;
  forward.small = exchanged;
  forward.written = x + mask + exchanged + 2 * per_channel + per_hidden;  // y, pooled, gate, z1
  forward.launches = shape.n ? 1 : 0;

  Traffic& backward = plan.backward;
  backward.x = 2 * x + mask;
  backward.again = stream ? x : 0;  // of dy, or of dresidual
  backward.window = stream ? (slice.lag + 1) * ((masks ? 4 : 3) * task + task_mask) : 0;
  backward.weights = forward.weights;
  backward.small =
      exchanged + 3 * per_channel + 3 * per_hidden;  // gate, dz2, pooled; z1 twice, dz1
  backward.written =
      x + (masks ? x : 0) + exchanged + per_channel + per_hidden + weights;  // + dz2, dz1
  backward.launches = shape.n ? 2 : 1;

  const int64_t workspace = stream ? StreamWorkspace(shape, slice).bytes() : 0;
  plan.forward_workspace_bytes = workspace;
  plan.backward_workspace_bytes = workspace + per_channel + per_hidden;  // + dz2, dz1
}

}  // namespace seblock
