// A slice: some channels, and in nhwc some rows, of a group of samples; what one task of strategies
// stream and resident squeezes and scales. `Pass` is the direction (pass.cuh).
//
//   nchw  a slice of a sample is one run of whole planes, which starts and ends at a vector
//   nhwc  rows of up to 256 bytes (resident: whole rows)
#pragma once

#include "pass.cuh"
#include "plan.h"

namespace seblock::cuda {

struct Slice {
  int64_t sample;  // the first of the group
  int samples;     // in it
  int channel;     // the first
  int channels;
  int row;  // the first
  int rows;
};

constexpr int kSliceLoads = 4;  // in flight per thread: issued before the first is used

template <typename Pass>
struct SliceParams {
  Pass pass;
  SlicePlan plan;
  SliceShared shared;
  Divisor32 per_plane;  // S
  bool resident;        // keep the slice in shared memory from squeeze to scale
};

// Offsets are in elements, from the slice's first in the first sample of the group. The plan sees
// to it that they fit in 32 bits.
template <typename Pass, Layout kLayout>
class SliceWork {
 public:
  using scalar_t = typename Pass::scalar_t;
  static constexpr int kVec = Pass::kVec;
  // Vectors in flight per thread, in the squeeze and in the scale.
  static constexpr int kAhead = kSliceLoads / Pass::kSqueezeTensors;
  static constexpr int kBehind = kSliceLoads / Pass::kScaleTensors;

  SEBLOCK_DEVICE SliceWork(const SliceParams<Pass>& p, const Slice& slice)
      : p_(p),
        slice_(slice),
        c_(static_cast<int>(p.pass.problem.shape.c)),
        s_(static_cast<int>(p.pass.problem.shape.s)),
        start_(kLayout == Layout::nchw ? (slice.sample * c_ + slice.channel) * s_
                                       : (slice.sample * s_ + slice.row) * c_ + slice.channel),
        sums_(shared_memory<float>() + p.shared.sums),
        factors_(shared_memory<float>() + p.shared.factors),
        scratch_(shared_memory<float>() + p.shared.scratch),
        stash_(shared_memory<Packed<scalar_t>>() + p.shared.stash / 4) {}

  // sums[g, c] = the sum over the slice's positions; ends with a barrier.
  SEBLOCK_DEVICE void squeeze() const {
    if constexpr (kLayout == Layout::nchw) {
      p_.plan.lanes <= kWarp ? squeeze_planes() : squeeze_long_planes();
    } else {
      for (int g = 0; g < slice_.samples; ++g) squeeze_rows(g);
    }
    sync_threads();
  }

  // Writes y or dx; the factors are in shared memory.
  SEBLOCK_DEVICE void scale() const {
    if constexpr (kLayout == Layout::nchw) {
      scale_planes();
    } else {
      for (int g = 0; g < slice_.samples; ++g) scale_rows(g);
    }
  }

  // Where channel c's factor lies: in nhwc such that neighbouring lanes, which hold neighbouring
  // vectors, find theirs side by side.
  SEBLOCK_DEVICE int slot(int c) const {
    return kLayout == Layout::nchw ? c : c % kVec * p_.plan.lanes + c / kVec;
  }

 private:
  SEBLOCK_DEVICE int plane_offset(int plane) const {  // nchw; planes of the slice's samples
    return (plane / slice_.channels * c_ + plane % slice_.channels) * s_;
  }
  SEBLOCK_DEVICE void put_sum(int plane, float sum) const {
    sums_[plane / slice_.channels * p_.plan.channels + plane % slice_.channels] = sum;
  }

  // What is to be summed of the vector at `offset`; `owner` is the thread that keeps it.
  SEBLOCK_DEVICE void terms(int offset, bool owner, Loaded<scalar_t>& loaded,
                            float (&term)[kVec]) const {
    p_.pass.terms(start_ + offset, owner, loaded, term);
    if (p_.resident && owner) stash_[offset / kVec] = loaded.x;
  }

  // The part of the vector at `offset` that lies in [begin, end), added up. Its owner is the range
  // that holds its first element.
  SEBLOCK_DEVICE float sum_of(int offset, int begin, int end, Loaded<scalar_t>& loaded) const {
    float term[kVec];
    terms(offset, offset >= begin, loaded, term);
    float sum = 0;
#pragma unroll
    for (int e = 0; e < kVec; ++e) {
      sum += offset + e >= begin && offset + e < end ? term[e] : 0.0f;
    }
    return sum;
  }

  // nchw: `lanes` threads to a plane. A thread's vectors in flight are of one plane, or, where a
  // plane has no more vectors than lanes, one each of several planes.
  SEBLOCK_DEVICE void squeeze_planes() const {
    const int lanes = p_.plan.lanes;
    const int side_by_side = kBlockThreads / lanes;
    const bool small = (s_ + 2 * kVec - 2) / kVec <= lanes;
    const int planes = slice_.samples * slice_.channels;
    const int lane = thread_index() % lanes * kVec;
    if (small) {
#pragma unroll 1
      for (int base = thread_index() / lanes; base - thread_index() / lanes < planes;
           base += kAhead * side_by_side) {
        Loaded<scalar_t> loaded[kAhead];
        int begin[kAhead], end[kAhead];
#pragma unroll
        for (int u = 0; u < kAhead; ++u) {
          const int plane = base + u * side_by_side;
          begin[u] = plane < planes ? plane_offset(plane) : 0;
          end[u] = plane < planes ? begin[u] + s_ : 0;
          const int offset = begin[u] / kVec * kVec + lane;
          if (offset < end[u]) p_.pass.load_term(start_ + offset, loaded[u]);
        }
#pragma unroll
        for (int u = 0; u < kAhead; ++u) {
          const int plane = base + u * side_by_side;
          const int offset = begin[u] / kVec * kVec + lane;
          const float sum = offset < end[u] ? sum_of(offset, begin[u], end[u], loaded[u]) : 0.0f;
          const float total = group_sum(sum, lanes);
          if (lane == 0 && plane < planes) put_sum(plane, total);
        }
      }
      return;
    }
#pragma unroll 1
    for (int base = 0; base < planes; base += side_by_side) {
      const int plane = base + thread_index() / lanes;
      const int begin = plane < planes ? plane_offset(plane) : 0;
      const int end = plane < planes ? begin + s_ : 0;
      const float total = group_sum(sum_range(begin, end, lane, lanes), lanes);
      if (lane == 0 && plane < planes) put_sum(plane, total);
    }
  }

  // nchw: the whole block to a plane.
  SEBLOCK_DEVICE void squeeze_long_planes() const {
    const int planes = slice_.samples * slice_.channels;
#pragma unroll 1
    for (int plane = 0; plane < planes; ++plane) {
      const int begin = plane_offset(plane);
      const float sum =
          block_sum(sum_range(begin, begin + s_, thread_index() * kVec, kBlockThreads), scratch_);
      if (thread_index() == 0) put_sum(plane, sum);
      sync_threads();
    }
  }

  // This thread's part of the sum over [begin, end), which `lanes` threads walk side by side.
  SEBLOCK_DEVICE float sum_range(int begin, int end, int lane, int lanes) const {
    float sum = 0;
#pragma unroll 1
    for (int first = begin / kVec * kVec + lane; first < end; first += kAhead * lanes * kVec) {
      Loaded<scalar_t> loaded[kAhead];
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
        const int offset = first + u * lanes * kVec;
        if (offset < end) p_.pass.load_term(start_ + offset, loaded[u]);
      }
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
        const int offset = first + u * lanes * kVec;
        if (offset < end) sum += sum_of(offset, begin, end, loaded[u]);
      }
    }
    return sum;
  }

  // nhwc: where a thread starts on the rows of a sample, and how it goes on: `lanes` threads side
  // by side on a row, 256 / lanes rows at a time.
  struct RowWalk {
    int group, groups;  // rows group, group + groups, ...
    int first, step;    // offsets of the first and between two
    bool active;
  };
  SEBLOCK_DEVICE RowWalk row_walk(int g) const {
    const int lanes = p_.plan.lanes;
    const int groups = kBlockThreads / lanes;
    const int group = thread_index() / lanes;
    const int channel = thread_index() % lanes * kVec;
    return {group, groups, (g * s_ + group) * c_ + channel, groups * c_,
            group < groups && channel < slice_.channels};
  }

  SEBLOCK_DEVICE void squeeze_rows(int g) const {
    const RowWalk walk = row_walk(g);
    const int lanes = p_.plan.lanes;
    const int rows = walk.active ? slice_.rows : 0;
    float sum[kVec] = {};
    int offset = walk.first;
#pragma unroll 1
    for (int row = walk.group; row < rows;
         row += kAhead * walk.groups, offset += kAhead * walk.step) {
      Loaded<scalar_t> loaded[kAhead];
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
        if (row + u * walk.groups < rows)
          p_.pass.load_term(start_ + (offset + u * walk.step), loaded[u]);
      }
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
        if (row + u * walk.groups >= rows) break;
        float term[kVec];
        terms(offset + u * walk.step, true, loaded[u], term);
#pragma unroll
        for (int e = 0; e < kVec; ++e) sum[e] += term[e];
      }
    }
    // The groups meet in scratch [kVec, groups, lanes], whose rows are such that neighbouring
    // channels lie in different banks.
    constexpr int kStride = kBlockThreads + kWarp / kVec;
#pragma unroll
    for (int e = 0; e < kVec; ++e) scratch_[e * kStride + thread_index()] = sum[e];
    sync_threads();
#pragma unroll 1
    for (int c = thread_index(); c < slice_.channels; c += kBlockThreads) {
      float total = 0;
      for (int part = 0; part < walk.groups; ++part)
        total += scratch_[c % kVec * kStride + part * lanes + c / kVec];
      sums_[g * p_.plan.channels + c] = total;
    }
    sync_threads();
  }

  SEBLOCK_DEVICE void load(int offset, Loaded<scalar_t>& loaded) const {
    if (p_.resident) {
      loaded.x = stash_[offset / kVec];
    } else {
      p_.pass.load_input(start_ + offset, loaded);
    }
    p_.pass.load_rest(start_ + offset, loaded);
  }

  // nchw: the vectors of all samples of the slice, side by side.
  SEBLOCK_DEVICE void scale_planes() const {
    const int run = slice_.channels * s_ / kVec;  // vectors of a sample
    const int vectors = slice_.samples * run;
#pragma unroll 1
    for (int first = thread_index(); first < vectors; first += kBehind * kBlockThreads) {
      Loaded<scalar_t> loaded[kBehind];
#pragma unroll
      for (int u = 0; u < kBehind; ++u) {
        const int vector = first + u * kBlockThreads;
        if (vector >= vectors) break;
        const int g = slice_.samples == 1 ? 0 : vector / run;
        load(g * c_ * s_ + (vector - g * run) * kVec, loaded[u]);
      }
#pragma unroll
      for (int u = 0; u < kBehind; ++u) {
        const int vector = first + u * kBlockThreads;
        if (vector >= vectors) break;
        const int g = slice_.samples == 1 ? 0 : vector / run;
        const int offset = (vector - g * run) * kVec;
        float gates[kVec], shifts[kVec];
        factors_along(g * p_.plan.channels, offset, gates, shifts);
        p_.pass.scale(start_ + (g * c_ * s_ + offset), loaded[u], gates, shifts);
      }
    }
  }

  // nchw: the factors of the kVec elements from `offset` in a sample on; `base` is that of its
  // first channel.
  SEBLOCK_DEVICE void factors_along(int base, int offset, float (&gates)[kVec],
                                    float (&shifts)[kVec]) const {
    int c = static_cast<int>(p_.per_plane.divide(offset));
    int position = offset - c * s_;
    if (s_ >= kVec) {  // at most two planes
      const int next = c + 1 < slice_.channels ? c + 1 : c;
      const int rest = s_ - position;
      const float low = factors_[base + c], high = factors_[base + next];
      float low_shift = 0, high_shift = 0;
      if constexpr (Pass::kShifts) {
        low_shift = sums_[base + c];
        high_shift = sums_[base + next];
      }
#pragma unroll
      for (int e = 0; e < kVec; ++e) {
        gates[e] = e < rest ? low : high;
        shifts[e] = e < rest ? low_shift : high_shift;
      }
      return;
    }
#pragma unroll
    for (int e = 0; e < kVec; ++e) {
      gates[e] = factors_[base + c];
      if constexpr (Pass::kShifts) shifts[e] = sums_[base + c];
      if (++position == s_) {
        position = 0;
        ++c;
      }
    }
  }

  // nhwc, sample g: like squeeze_rows; a thread keeps the factors of its channels.
  SEBLOCK_DEVICE void scale_rows(int g) const {
    const RowWalk walk = row_walk(g);
    if (!walk.active) return;
    const int rows = slice_.rows;
    float gates[kVec], shifts[kVec];
#pragma unroll
    for (int e = 0; e < kVec; ++e) {
      const int at = g * p_.plan.channels + e * p_.plan.lanes + thread_index() % p_.plan.lanes;
      gates[e] = factors_[at];
      if constexpr (Pass::kShifts) shifts[e] = sums_[at];
    }
    int offset = walk.first;
#pragma unroll 1
    for (int row = walk.group; row < rows;
         row += kBehind * walk.groups, offset += kBehind * walk.step) {
      Loaded<scalar_t> loaded[kBehind];
#pragma unroll
      for (int u = 0; u < kBehind; ++u) {
        if (row + u * walk.groups < rows) load(offset + u * walk.step, loaded[u]);
      }
#pragma unroll
      for (int u = 0; u < kBehind; ++u) {
        if (row + u * walk.groups < rows)
          p_.pass.scale(start_ + (offset + u * walk.step), loaded[u], gates, shifts);
      }
    }
  }

  const SliceParams<Pass>& p_;
  const Slice& slice_;
  const int c_, s_;
  const int64_t start_;
  const Shared<float> sums_, factors_, scratch_;
  const Shared<Packed<scalar_t>> stash_;  // resident: [samples, vectors of a sample]
};

}  // namespace seblock::cuda
