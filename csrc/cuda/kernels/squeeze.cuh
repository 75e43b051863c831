// Strategy S, squeeze: the sum over space of x (forward) or of dy * x (backward), for every sample
// and channel. Each sum may be shared by `splits` blocks; they write partial [splits, N, C], and
// whoever reads it adds the parts in order: no atomics, the same bits every run.
#pragma once

#include "device/math.cuh"
#include "source.cuh"

namespace seblock::cuda {

template <typename Source>
struct SqueezeParams {
  Source source;
  Shape shape;
  int lanes;                        // threads side by side, see the kernels
  int splits;                       // blocks that share a sum
  int64_t span;                     // positions per split
  int tiles;                        // nhwc: blocks side by side on the channels
  typename Source::acc_t* partial;  // [splits, N, C]

  // The positions that split `index` sums: [first(index), first(index + 1)).
  SEBLOCK_DEVICE int64_t first(int64_t index) const {
    return index * span < shape.s ? index * span : shape.s;
  }
};

constexpr int kLoadsInFlight = 4;

// nchw. A plane is S neighbouring elements; `lanes` threads sum one plane, so a block covers 256 /
// lanes neighbouring planes. Planes start anywhere (7x7 in bfloat16 is 98 bytes): threads read the
// aligned vectors that touch their plane and leave the neighbours' elements out. Vectors across a
// border are read by both planes, by neighbouring threads; device memory sees x once. Reads |x|
// (backward: 2|x|), writes splits * N * C * acc.
template <typename Source, int kVec>
SEBLOCK_KERNEL squeeze_nchw_kernel(SqueezeParams<Source> p) {
  using acc_t = typename Source::acc_t;
  const int64_t planes = p.shape.n * p.shape.c;
  const int64_t total = planes * p.shape.s;

  // 1. This thread's plane and its part of it, as a range of elements.
  const int split = block_index() % p.splits;
  const int lane = thread_index() % p.lanes;
  const int64_t plane =
      int64_t{block_index() / p.splits} * (kBlockThreads / p.lanes) + thread_index() / p.lanes;
  const bool active = plane < planes;
  const int64_t begin = active ? plane * p.shape.s + p.first(split) : 0;
  const int64_t end = active ? plane * p.shape.s + p.first(split + 1) : 0;

  // 2. Sum: first kLoadsInFlight independent loads, then their elements.
  acc_t sum = 0;
  const int64_t last = ceil_div(end, kVec);
  for (int64_t first = begin / kVec + lane; first < last;
       first += int64_t{kLoadsInFlight} * p.lanes) {
    acc_t values[kLoadsInFlight][kVec];
#pragma unroll
    for (int u = 0; u < kLoadsInFlight; ++u) {
      const int64_t i = (first + int64_t{u} * p.lanes) * kVec;
      if (i < end && i + kVec <= total) p.source.load_at(i, i >= begin, values[u]);
    }
#pragma unroll
    for (int u = 0; u < kLoadsInFlight; ++u) {
      const int64_t i = (first + int64_t{u} * p.lanes) * kVec;
      acc_t part = 0;
      if (i + kVec <= total) {
#pragma unroll
        for (int e = 0; e < kVec; ++e)
          part += i + e >= begin && i + e < end ? values[u][e] : acc_t(0);
      } else {  // the last, incomplete vector of the tensor
#pragma unroll 1
        for (int64_t j = i < begin ? begin : i; j < end; ++j) {
          acc_t one[1];
          p.source.load_at(j, true, one);
          part += one[0];
        }
      }
      sum += part;
    }
  }

  // 3. Add up the lanes: within a warp, or over the block when one plane takes all of it.
  if (p.lanes <= kWarp) {
    sum = group_sum(sum, p.lanes);
  } else {
    sum = block_sum(sum, shared_memory<acc_t>());
  }
  if (active && lane == 0) store(p.partial + int64_t{split} * planes + plane, sum);
}

// nhwc. A row is the C channels of one position; `lanes` threads side by side read up to 256 bytes
// of a row, the 256 / lanes groups of the block read different rows. Block = (sample, channel tile,
// split). Reads |x| (backward: 2|x|), writes splits * N * C * acc.
template <typename Source, int kVec>
SEBLOCK_KERNEL squeeze_nhwc_kernel(SqueezeParams<Source> p) {
  using acc_t = typename Source::acc_t;
  const int64_t c = p.shape.c;
  const int lane = thread_index() % p.lanes;
  const int group = thread_index() / p.lanes;
  const int groups = kBlockThreads / p.lanes;

  // 1. This block's sample, tile of channels and part of the rows.
  const int split = block_index() % p.splits;
  const int tile = block_index() / p.splits % p.tiles;
  const int64_t sample = block_index() / p.splits / p.tiles;
  const int64_t end = p.first(split + 1);
  const int64_t channel = (int64_t{tile} * p.lanes + lane) * kVec;
  const int64_t base = sample * p.shape.s * c + channel;

  // 2. Each thread sums kVec channels over its rows.
  acc_t sum[kVec] = {};
  if (channel < c) {
    for (int64_t first = p.first(split) + group; first < end;
         first += int64_t{kLoadsInFlight} * groups) {
      acc_t values[kLoadsInFlight][kVec];
#pragma unroll
      for (int u = 0; u < kLoadsInFlight; ++u) {
        const int64_t row = first + int64_t{u} * groups;
        if (row < end) p.source.load_at(base + row * c, true, values[u]);
      }
#pragma unroll
      for (int u = 0; u < kLoadsInFlight; ++u) {
        if (first + int64_t{u} * groups < end) {
#pragma unroll
          for (int e = 0; e < kVec; ++e) sum[e] += values[u][e];
        }
      }
    }
  }

  // 3. Add up the groups, halving their number each time; shared memory is [kVec, groups, lanes].
  const Shared<acc_t> mine = shared_memory<acc_t>() + thread_index();
#pragma unroll
  for (int e = 0; e < kVec; ++e) mine[e * kBlockThreads] = sum[e];
  for (int half = groups / 2; half > 0; half /= 2) {
    sync_threads();
    if (group < half) {
#pragma unroll
      for (int e = 0; e < kVec; ++e)
        mine[e * kBlockThreads] += mine[e * kBlockThreads + half * p.lanes];
    }
  }
  if (group == 0 && channel < c) {
    acc_t* out = p.partial + (int64_t{split} * p.shape.n + sample) * c + channel;
#pragma unroll
    for (int e = 0; e < kVec; ++e) store(out + e, acc_t(mine[e * kBlockThreads]));
  }
}

template <int kVec, typename Source>
void launch_squeeze(const Source& source, const Problem& problem, const SePlan& plan,
                    typename Source::acc_t* partial, void* stream) {
  using acc_t = typename Source::acc_t;
  const Shape& shape = problem.shape;
  const int64_t tiles = ceil_div(shape.c, int64_t{plan.split.lanes} * kVec);
  const SqueezeParams<Source> params{source,
                                     shape,
                                     plan.split.lanes,
                                     plan.split.splits,
                                     ceil_div(shape.s, plan.split.splits),
                                     static_cast<int>(tiles),
                                     partial};
  if (problem.layout == Layout::nchw) {
    const int64_t blocks =
        ceil_div(shape.n * shape.c, kBlockThreads / plan.split.lanes) * plan.split.splits;
    launch(Source::kName, squeeze_nchw_kernel<Source, kVec>, blocks,
           kBlockThreads / kWarp * sizeof(acc_t), stream, params);
  } else {
    const int64_t blocks = shape.n * tiles * plan.split.splits;
    launch(Source::kName, squeeze_nhwc_kernel<Source, kVec>, blocks,
           kBlockThreads * kVec * sizeof(acc_t), stream, params);
  }
}

}  // namespace seblock::cuda
