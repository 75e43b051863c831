// The small products, for a few samples at a time:
//
//   out[n, o] = sum_i W[o, i] in[n, i]     by rows: W1 and W2 forward
//   out[n, o] = sum_i W[i, o] in[n, i]     by columns: W2 and W1 backward
//
// W is read as PyTorch stores it, once per group of samples. Which thread adds what, and in which
// order, follows from the number of inputs and outputs alone: Deal, csrc/tiling.h.
//
// A Stage (reduce.cuh, expand.cuh) says what goes in, what is worth keeping of it, and what comes
// out. kernels/reduce.cuh and expand.cuh describe theirs.
#pragma once

#include "device/math.cuh"
#include "device/vec.cuh"

namespace seblock::cuda {

constexpr int kTogether = 4;  // neighbouring elements of W that a thread loads at once

// Reads W four neighbours at a time: as they lie in memory, to be widened where they are used, not
// where they are loaded, for that would wait for them.
template <typename T, typename acc_t>
struct FoursOf {
  using Raw = FourWords<T>;
  const T* data;

  // From element i on; zeros if none is `valid`. All four are, or none.
  SEBLOCK_DEVICE Raw load(int64_t i, int valid) const {
    return valid > 0 ? load_four_words(data + i) : Raw{};
  }
  SEBLOCK_DEVICE void widen(const Raw& raw, acc_t (&out)[kTogether]) const {
    Four<T> four;
    memcpy(static_cast<void*>(&four), raw.words, sizeof four);
#pragma unroll
    for (int k = 0; k < kTogether; ++k) out[k] = static_cast<acc_t>(four.value[k]);
  }
};

// The same by single elements, where rows do not begin at a multiple of four.
template <typename AnyWeight>
struct OnesOf {
  using acc_t = typename AnyWeight::acc_t;
  struct Raw {
    acc_t value[kTogether];
  };
  const AnyWeight& weight;

  SEBLOCK_DEVICE Raw load(int64_t i, int valid) const {
    Raw raw;
#pragma unroll
    for (int k = 0; k < kTogether; ++k) raw.value[k] = k < valid ? weight.at(i + k) : acc_t(0);
    return raw;
  }
  SEBLOCK_DEVICE void widen(const Raw& raw, acc_t (&out)[kTogether]) const {
#pragma unroll
    for (int k = 0; k < kTogether; ++k) out[k] = raw.value[k];
  }
};

// A weight or bias in x's dtype or float32: known at run time, as a branch costs less than twice
// the kernels.
template <typename scalar>
struct Weight {
  using acc_t = acc_of<scalar>;
  const void* data;  // or null
  bool is_float_;
  bool by_fours;  // four neighbours may be moved together

  SEBLOCK_DEVICE explicit operator bool() const { return data != nullptr; }
  SEBLOCK_DEVICE acc_t at(int64_t i) const {
    return is_float() ? load<acc_t>(as<float>() + i) : load<acc_t>(as<scalar>() + i);
  }

  // Calls f with what reads four neighbours.
  template <typename F>
  SEBLOCK_DEVICE void read_by(const F& f) const {
    if (!by_fours) return f(OnesOf<Weight>{*this});
    if (is_float()) return f(FoursOf<float, acc_t>{as<float>()});
    if constexpr (!std::is_same_v<scalar, float>) f(FoursOf<scalar, acc_t>{as<scalar>()});
  }

 private:
  SEBLOCK_DEVICE bool is_float() const { return std::is_same_v<scalar, float> || is_float_; }
  template <typename T>
  SEBLOCK_DEVICE const T* as() const {
    return static_cast<const T*>(data);
  }
};

constexpr int kProductShared = 16 * 1024;  // bytes

// kSamples samples share one read of the weights.
template <int kSamples, typename Stage>
class Product {
 public:
  using scalar_t = typename Stage::scalar_t;
  using acc_t = acc_of<scalar_t>;
  // Inputs of a sample that lie in shared memory at a time. By columns, the other half is for the
  // groups' sums.
  static constexpr int kSums = kProductShared / 2 / static_cast<int>(sizeof(acc_t));
  static constexpr int kInputs = (Stage::kOrder == Order::rows ? 2 : 1) * kSums / kSamples;

  // Samples [sample, sample + samples), samples <= kSamples. The `keeper` keeps the inputs.
  SEBLOCK_DEVICE Product(const Stage& stage, int64_t sample, int samples, bool keeper)
      : stage_(stage), sample_(sample), samples_(samples), keeper_(keeper) {}

  // The tiles [first, end) of Deal::outputs() each. Every thread must call. Uses shared memory,
  // with no barrier at the begin or the end.
  SEBLOCK_DEVICE void run(int first, int end) const {
    if constexpr (Stage::kOrder == Order::rows) {
      rows(first, end);
    } else {
      columns(first, end);
    }
  }

 private:
  // Inputs [begin, begin + count) of all samples, zeros beyond the edges.
  SEBLOCK_DEVICE void stage_inputs(int begin, int count, bool keeps) const {
    const auto inputs = shared_memory<acc_t>();
    const int padded = (count + kTogether - 1) / kTogether * kTogether;
#pragma unroll 1
    for (int item = thread_index(); item < padded * kSamples; item += kBlockThreads) {
      const int g = kSamples == 1 ? 0 : item / padded, i = item - g * padded;
      acc_t value = 0;
      if (g < samples_ && i < count) {
        value = stage_.input(sample_ + g, begin + i);
        if (keeps) stage_.keep(sample_ + g, begin + i, value);
      }
      inputs[Stage::kOrder == Order::rows ? g * kInputs + i : i * kSamples + g] = value;
    }
  }

  // add(begin, count) for all inputs, chunk by chunk. Where one chunk holds them all it serves
  // every tile.
  template <typename Add>
  SEBLOCK_DEVICE void for_chunks(bool first_tile, const Add& add) const {
    const auto width = static_cast<int>(stage_.width());
#pragma unroll 1
    for (int begin = 0; begin < width; begin += kInputs) {
      const int count = width - begin < kInputs ? width - begin : kInputs;
      if (first_tile || width > kInputs) {
        if (!first_tile || begin > 0) sync_threads();
        stage_inputs(begin, count, keeper_ && first_tile);
        sync_threads();
      }
      add(begin, count);
    }
  }

  // Of weights, together in flight.
  static constexpr int kLoads = kSamples == 1 ? 4 : 8;

  // A thread has kRows rows of W and every lanes-th four inputs of them. The lanes' sums meet by
  // exchange.
  static constexpr int kRows = Deal::rows_of_thread(kSamples);

  SEBLOCK_DEVICE void rows(int first_tile, int end_tile) const {
    const auto height = static_cast<int>(stage_.height());
    const int shift = stage_.deal.shift, lanes = 1 << shift;
#pragma unroll 1
    for (int tile = first_tile; tile < end_tile; ++tile) {
      const int output = (tile * (kBlockThreads >> shift) + (thread_index() >> shift)) * kRows;
      acc_t sum[kRows * kSamples] = {};  // by (row, sample)
      for_chunks(tile == first_tile, [&](int begin, int count) {
        stage_.matrix.read_by(
            [&](const auto& weights) { add_rows(weights, output, begin, count, sum); });
      });
#pragma unroll
      for (int i = 0; i < kRows * kSamples; ++i) sum[i] = group_sum(sum[i], lanes);
      // Lane l writes the sums l, l + lanes, ...
#pragma unroll 1
      for (int i = thread_index() & stage_.deal.last_lane; i < kRows * kSamples; i += lanes) {
        acc_t mine = sum[0];
#pragma unroll
        for (int k = 1; k < kRows * kSamples; ++k) mine = k == i ? sum[k] : mine;
        const int row = output + i / kSamples, g = i % kSamples;
        if (row < height && g < samples_) stage_.output(sample_ + g, row, mine);
      }
    }
  }

  template <typename Weights>
  SEBLOCK_DEVICE void add_rows(const Weights& weights, int output, int begin, int count,
                               acc_t (&sum)[kRows * kSamples]) const {
    constexpr int kInFlight = kLoads / kRows;  // of a row
    const auto width = static_cast<int>(stage_.width());
    const auto height = static_cast<int>(stage_.height());
    const int lanes = 1 << stage_.deal.shift, turn = lanes * kTogether;
#pragma unroll 1
    for (int i = (thread_index() & stage_.deal.last_lane) * kTogether; i < count;
         i += kInFlight * turn) {
      typename Weights::Raw raw[kInFlight][kRows];
#pragma unroll
      for (int u = 0; u < kInFlight; ++u) {
#pragma unroll
        for (int k = 0; k < kRows; ++k) {
          const int valid = output + k < height ? count - (i + u * turn) : 0;
          raw[u][k] = weights.load(int64_t{output + k} * width + begin + i + u * turn, valid);
        }
      }
#pragma unroll
      for (int u = 0; u < kInFlight; ++u) {
        if (i + u * turn >= count) break;
        acc_t w[kRows][kTogether];
#pragma unroll
        for (int k = 0; k < kRows; ++k) weights.widen(raw[u][k], w[k]);
#pragma unroll
        for (int g = 0; g < kSamples; ++g) {
          acc_t in[kTogether];
          inputs_at(g * kInputs + i + u * turn, in);
#pragma unroll
          for (int k = 0; k < kRows; ++k) {  // short chains: nearer to the truth
            acc_t of_four = w[k][0] * in[0];
#pragma unroll
            for (int e = 1; e < kTogether; ++e)
              of_four = fused_multiply_add(w[k][e], in[e], of_four);
            sum[k * kSamples + g] += of_four;
          }
        }
      }
    }
  }

  SEBLOCK_DEVICE static void inputs_at(int i, acc_t (&out)[kTogether]) {
    constexpr int kQuad = Quad<acc_t>::kCount;
    const auto quads = shared_memory<Quad<acc_t>>();
#pragma unroll
    for (int q = 0; q < kTogether / kQuad; ++q) {
      const Quad<acc_t> quad = quads[i / kQuad + q];
#pragma unroll
      for (int e = 0; e < kQuad; ++e) out[q * kQuad + e] = quad.value[e];
    }
  }

  // A thread has 4 columns of W and every groups-th input. The groups' sums meet in shared memory.
  template <typename Weights>
  SEBLOCK_DEVICE void add_columns(const Weights& weights, int output, int begin, int count,
                                  acc_t (&sum)[kSamples][kTogether]) const {
    const auto height = static_cast<int>(stage_.height());
    const int groups = kBlockThreads >> stage_.deal.shift;
    const auto inputs = shared_memory<acc_t>();
#pragma unroll 1
    for (int i = thread_index() >> stage_.deal.shift; i < count; i += kLoads * groups) {
      typename Weights::Raw raw[kLoads];
#pragma unroll
      for (int u = 0; u < kLoads; ++u) {
        const int input = i + u * groups;
        raw[u] = weights.load(int64_t{begin + input} * height + output,
                              input < count ? height - output : 0);
      }
#pragma unroll
      for (int u = 0; u < kLoads; ++u) {
        if (i + u * groups >= count) break;
        acc_t w[kTogether];
        weights.widen(raw[u], w);
#pragma unroll
        for (int g = 0; g < kSamples; ++g) {
          const acc_t in = inputs[(i + u * groups) * kSamples + g];
#pragma unroll
          for (int e = 0; e < kTogether; ++e) sum[g][e] = fused_multiply_add(w[e], in, sum[g][e]);
        }
      }
    }
  }

  SEBLOCK_DEVICE void columns(int first_tile, int end_tile) const {
    const auto height = static_cast<int>(stage_.height());
    const int shift = stage_.deal.shift, lanes = 1 << shift, groups = kBlockThreads >> shift;
    const int outputs = lanes * kTogether;
#pragma unroll 1
    for (int tile = first_tile; tile < end_tile; ++tile) {
      const int output = tile * outputs + (thread_index() & stage_.deal.last_lane) * kTogether;
      acc_t sum[kSamples][kTogether] = {};
      for_chunks(tile == first_tile, [&](int begin, int count) {
        stage_.matrix.read_by(
            [&](const auto& weights) { add_columns(weights, output, begin, count, sum); });
      });
      const int thread = thread_index(), lane = thread & stage_.deal.last_lane,
                group = thread >> shift;
      // [groups, samples at once, outputs]
      constexpr int kMost = kSums / (kBlockThreads * kTogether);
      constexpr int kAtOnce = kSamples < kMost ? kSamples : kMost;
      constexpr int kQuad = Quad<acc_t>::kCount;
      const auto quads = shared_memory<Quad<acc_t>>() + kSums / kQuad;
      const auto sums = shared_memory<acc_t>() + kSums;
#pragma unroll
      for (int round = 0; round < kSamples; round += kAtOnce) {
        if (round > 0 || tile > first_tile) sync_threads();
#pragma unroll
        for (int g = 0; g < kAtOnce; ++g) {
          in_quads(sum[round + g], [&](int q, const Quad<acc_t>& quad) {
            quads[((group * kAtOnce + g) * outputs + lane * kTogether) / kQuad + q] = quad;
          });
        }
        sync_threads();
        for (int item = thread; item < outputs * kAtOnce; item += kBlockThreads) {
          const int o = item & (outputs - 1), g = item >> (shift + 2);
          if (round + g >= samples_ || tile * outputs + o >= height) continue;
          const acc_t total = sum_in_chains<acc_t>(
              groups, [&](int part) { return sums[(part * kAtOnce + g) * outputs + o]; });
          stage_.output(sample_ + round + g, tile * outputs + o, total);
        }
      }
    }
  }

  const Stage& stage_;
  const int64_t sample_;
  const int samples_;
  const bool keeper_;
};

// Both products of one sample, by one block. Ends with a barrier.
template <typename ReduceStage, typename ExpandStage>
SEBLOCK_DEVICE void products_of_sample(const ReduceStage& reduce, const ExpandStage& expand,
                                       int64_t sample) {
  Product<1, ReduceStage>(reduce, sample, 1, true).run(0, reduce.tiles);
  sync_threads();
  Product<1, ExpandStage>(expand, sample, 1, true).run(0, expand.tiles);
  sync_threads();
}

}  // namespace seblock::cuda
