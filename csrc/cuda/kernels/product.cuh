// The small products, for a few samples at a time:
//
//   out[n, o] = sum_i W[o, i] in[n, i]     by rows: W1 and W2 forward
//   out[n, o] = sum_i W[i, o] in[n, i]     by columns: W2 and W1 backward
//
// W is read as PyTorch stores it, once per group of samples. Which thread adds what, and in which
// order, follows from the number of inputs and outputs alone.
//
// A Stage (reduce.cuh, expand.cuh) says what goes in, what is worth keeping of it, and what comes
// out. kernels/reduce.cuh and expand.cuh describe theirs.
#pragma once

#include "device/math.cuh"
#include "device/vec.cuh"

namespace seblock::cuda {

constexpr int kTogether = 4;  // neighbouring elements of W that a thread loads at once

// A weight or bias in x's dtype or float32: known at run time, as a branch costs less than twice
// the kernels.
template <typename scalar>
struct Weight {
  using acc_t = acc_of<scalar>;
  const void* data;  // or null
  bool is_float_;

  SEBLOCK_DEVICE explicit operator bool() const { return data != nullptr; }
  SEBLOCK_DEVICE acc_t at(int64_t i) const {
    return is_float() ? load<acc_t>(floats() + i) : load<acc_t>(scalars() + i);
  }

  // Whether four neighbours may be moved together, in rows of `pitch` elements.
  SEBLOCK_DEVICE bool aligned(int64_t pitch) const {
    const auto bytes = kTogether * (is_float() ? sizeof(float) : sizeof(scalar));
    return pitch % kTogether == 0 && reinterpret_cast<uintptr_t>(data) % bytes == 0;
  }
  // Four neighbours as they lie in memory. Widened where they are used, not where they are loaded:
  // that would wait for them.
  struct Raw {
    uint32_t words[sizeof(scalar) == 8 ? 8 : 4];
  };
  // Those from element i on of which `valid` exist, and zeros.
  SEBLOCK_DEVICE Raw raw(int64_t i, int valid, bool together) const {
    return is_float() ? raw_of(floats() + i, valid, together)
                      : raw_of(scalars() + i, valid, together);
  }
  SEBLOCK_DEVICE void widen(const Raw& raw, acc_t (&out)[kTogether]) const {
    is_float() ? widen_as<float>(raw, out) : widen_as<scalar>(raw, out);
  }

 private:
  SEBLOCK_DEVICE bool is_float() const { return std::is_same_v<scalar, float> || is_float_; }
  SEBLOCK_DEVICE const float* floats() const { return static_cast<const float*>(data); }
  SEBLOCK_DEVICE const scalar* scalars() const { return static_cast<const scalar*>(data); }

  template <typename T>
  SEBLOCK_DEVICE static Raw raw_of(const T* address, int valid, bool together) {
    Four<T> four;
    if (together && valid >= kTogether) {
      four = load_four(address);
    } else {
#pragma unroll
      for (int k = 0; k < kTogether; ++k) {
        four.value[k] = T(0.0f);
        if (k < valid) {
          before_load(address + k);
          four.value[k] = address[k];
        }
      }
    }
    Raw raw;
    memcpy(raw.words, static_cast<const void*>(&four), sizeof four);
    return raw;
  }
  template <typename T>
  SEBLOCK_DEVICE static void widen_as(const Raw& raw, acc_t (&out)[kTogether]) {
    Four<T> four;
    memcpy(static_cast<void*>(&four), raw.words, sizeof four);
#pragma unroll
    for (int k = 0; k < kTogether; ++k) out[k] = static_cast<acc_t>(four.value[k]);
  }
};

constexpr int kProductShared = 16 * 1024;  // bytes
constexpr int kOutputs = 32;               // of a tile, at most

enum class Order { rows, columns };

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

  // The tiles [first, end). Every thread must call. Uses shared memory, with no barrier at the
  // begin or the end.
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

  // A warp has 4 rows of W, its lanes take 4 inputs of every 128, whose weights are loaded while
  // those before them are used. The lanes' sums are halved five times by exchange.
  SEBLOCK_DEVICE void rows(int first_tile, int end_tile) const {
    constexpr int kRows = kOutputs / kWarps, kStep = kWarp * kTogether;
    const auto width = static_cast<int>(stage_.width());
    const auto height = static_cast<int>(stage_.height());
    const bool together = stage_.matrix.aligned(width);
#pragma unroll 1
    for (int tile = first_tile; tile < end_tile; ++tile) {
      const int output = tile * kOutputs + thread_index() / kWarp * kRows;
      acc_t sum[kRows][kSamples] = {};
      for_chunks(tile == first_tile, [&](int begin, int count) {
        const int lane = thread_index() % kWarp;
        typename Weight<scalar_t>::Raw next[kRows] = {};
#pragma unroll 1
        for (int i = lane * kTogether - kStep; i < count; i += kStep) {
          acc_t in[kSamples][kTogether] = {};
#pragma unroll
          for (int g = 0; g < kSamples; ++g) {
            if (i >= 0) inputs_at(g * kInputs + i, in[g]);
          }
#pragma unroll
          for (int k = 0; k < kRows; ++k) {
            acc_t w[kTogether] = {};
            if (i >= 0) stage_.matrix.widen(next[k], w);
            const int valid = output + k < height ? count - (i + kStep) : 0;
            next[k] =
                stage_.matrix.raw(int64_t{output + k} * width + begin + i + kStep, valid, together);
            if (i < 0) continue;
#pragma unroll
            for (int g = 0; g < kSamples; ++g) {
#pragma unroll
              for (int e = 0; e < kTogether; ++e)
                sum[k][g] = fused_multiply_add(w[e], in[g][e], sum[k][g]);
            }
          }
        }
      });
      acc_t flat[kRows * kSamples];  // by (row, sample)
#pragma unroll
      for (int k = 0; k < kRows; ++k) {
#pragma unroll
        for (int g = 0; g < kSamples; ++g) flat[k * kSamples + g] = sum[k][g];
      }
      const int lane = thread_index() % kWarp;
      const int mine = exchange_sums(flat, lane);
      const int row = output + mine / kSamples, g = mine % kSamples;
      constexpr int kCopies = kWarp / (kRows * kSamples);  // lanes that hold the same sum
      if (lane % kCopies == 0 && row < height && g < samples_)
        stage_.output(sample_ + g, row, flat[0]);
    }
  }

  // Every lane of the warp has kCount sums that are to be added over the lanes. Each time half of
  // them is given away and half is kept, for as long as there are two. flat[0] becomes the one
  // whose number is returned.
  template <int kCount>
  SEBLOCK_DEVICE static int exchange_sums(acc_t (&flat)[kCount], int lane) {
    int number = 0;
    int count = kCount;
#pragma unroll
    for (int mask = kWarp / 2; mask > 0; mask /= 2) {
      const bool upper = lane & mask;
      if (count > 1) {
        count /= 2;
#pragma unroll
        for (int i = 0; i < kCount / 2; ++i) {
          if (i >= count) break;
          const acc_t given = upper ? flat[i] : flat[i + count];
          const acc_t kept = upper ? flat[i + count] : flat[i];
          flat[i] = kept + shuffle_xor(given, mask);
        }
        number += upper ? count : 0;
      } else {
        flat[0] += shuffle_xor(flat[0], mask);
      }
    }
    return number;
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

  // `lanes` threads side by side hold 4 columns of W each; the 256 / lanes groups of threads take
  // every so many inputs, two at a time, and meet in shared memory.
  SEBLOCK_DEVICE void columns(int first_tile, int end_tile) const {
    constexpr int kBatch = 2;
    const auto height = static_cast<int>(stage_.height());
    const int shift = height > 16 ? 3 : height > 8 ? 2 : height > 4 ? 1 : 0;
    const int lanes = 1 << shift, groups = kBlockThreads >> shift, outputs = lanes * kTogether;
    const int thread = thread_index(), lane = thread & (lanes - 1), group = thread >> shift;
    const bool together = stage_.matrix.aligned(height);
    const int step = kBatch * groups;
    const auto inputs = shared_memory<acc_t>();
#pragma unroll 1
    for (int tile = first_tile; tile < end_tile; ++tile) {
      const int output = tile * outputs + lane * kTogether;
      acc_t sum[kSamples][kTogether] = {};
      for_chunks(tile == first_tile, [&](int begin, int count) {
        typename Weight<scalar_t>::Raw next[kBatch] = {};
#pragma unroll 1
        for (int i = group - step; i < count; i += step) {
          acc_t w[kBatch][kTogether] = {};
#pragma unroll
          for (int b = 0; b < kBatch; ++b) {
            if (i >= 0) stage_.matrix.widen(next[b], w[b]);
          }
#pragma unroll
          for (int b = 0; b < kBatch; ++b) {
            const int input = i + step + b * groups;
            next[b] = stage_.matrix.raw(int64_t{begin + input} * height + output,
                                        input < count ? height - output : 0, together);
          }
          if (i < 0) continue;
#pragma unroll
          for (int b = 0; b < kBatch; ++b) {
            if (i + b * groups >= count) break;
#pragma unroll
            for (int g = 0; g < kSamples; ++g) {
              const acc_t in = inputs[(i + b * groups) * kSamples + g];
#pragma unroll
              for (int e = 0; e < kTogether; ++e)
                sum[g][e] = fused_multiply_add(w[b][e], in, sum[g][e]);
            }
          }
        }
      });
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
#pragma unroll
          for (int q = 0; q < kTogether / kQuad; ++q) {
            Quad<acc_t> quad;
#pragma unroll
            for (int e = 0; e < kQuad; ++e) quad.value[e] = sum[round + g][q * kQuad + e];
            quads[((group * kAtOnce + g) * outputs + lane * kTogether) / kQuad + q] = quad;
          }
        }
        sync_threads();
        const int o = thread & (outputs - 1), g = thread >> (shift + 2);
        if (g < kAtOnce && round + g < samples_ && tile * outputs + o < height) {
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

// Outputs of a tile: all there are where they are few.
SEBLOCK_HOST_DEVICE int outputs_of_tile(Order order, int64_t outputs) {
  if (order == Order::rows || outputs > 16) return kOutputs;
  return outputs > 8 ? 16 : outputs > 4 ? 8 : 4;
}

SEBLOCK_HOST_DEVICE int tiles_of(Order order, int64_t outputs) {
  const int of_tile = outputs_of_tile(order, outputs);
  return static_cast<int>((outputs + of_tile - 1) / of_tile);
}

// Both products of one sample, by one block. Ends with a barrier.
template <typename ReduceStage, typename ExpandStage>
SEBLOCK_DEVICE void products_of_sample(const ReduceStage& reduce, const ExpandStage& expand,
                                       int64_t sample) {
  Product<1, ReduceStage>(reduce, sample, 1, true)
      .run(0, tiles_of(ReduceStage::kOrder, reduce.height()));
  sync_threads();
  Product<1, ExpandStage>(expand, sample, 1, true)
      .run(0, tiles_of(ExpandStage::kOrder, expand.height()));
  sync_threads();
}

}  // namespace seblock::cuda
