// The two small products as one block does them for its slice and its group of samples.
//
//   out(o, g) = sum_i M(o, i) in[g, i]     o < outputs, i < inputs, g < samples
//
// M is a part of W1 or W2, read as PyTorch stores it, once. The forward pass walks both along their
// rows (lanes side by side on i), the backward pass along their columns (lanes side by side on o).
// Which thread adds what depends on outputs and inputs alone.
#pragma once

#include "device/math.cuh"
#include "device/vec.cuh"

namespace seblock::cuda {

// W1 or W2 in x's dtype or float32: known at run time, as a branch costs less here than twice the
// kernels.
template <typename scalar>
struct Weight {
  const void* data;
  bool is_float;

  SEBLOCK_DEVICE float at(int i) const {
    return is_float ? load<float>(static_cast<const float*>(data) + i)
                    : load<float>(static_cast<const scalar*>(data) + i);
  }
};

SEBLOCK_DEVICE int power_of_two_at_least(int value, int least, int most) {
  int power = least;
  while (power < value && power < most) power *= 2;
  return power;
}

// `width` lanes side by side on the inputs. matrix(o, i) is M; out(o, g, sum) is called by one
// thread for each result. Every thread must call.
template <typename Matrix, typename Out>
SEBLOCK_DEVICE void project_rows(const Matrix& matrix, int outputs, int inputs, int samples,
                                 Shared<float> in, int stride, const Out& out) {
  const int width = power_of_two_at_least(inputs / 8, kSamples, kWarp);
  const int lane = thread_index() % width;
#pragma unroll 1
  for (int base = 0; base < outputs; base += kBlockThreads / width) {
    const int o = base + thread_index() / width;
    float sum[kSamples] = {};
    if (o < outputs) {
#pragma unroll(2)
      for (int i = lane; i < inputs; i += width) {
        const float weight = matrix(o, i);
#pragma unroll
        for (int g = 0; g < kSamples; ++g) {
          if (g < samples) sum[g] += weight * in[g * stride + i];
        }
      }
    }
    float mine = 0;  // lane g's: sample g
#pragma unroll
    for (int g = 0; g < kSamples; ++g) {
      if (g < samples) {
        const float total = group_sum(sum[g], width);
        if (lane == g) mine = total;
      }
    }
    if (lane < samples && o < outputs) out(o, lane, mine);
  }
}

// Lanes side by side on the outputs; 256 / lanes groups of threads take every so many inputs and
// meet in `scratch` [kGroup, 256]. add(o, i, sum) adds input i's part to sum[g]; out as above.
// Every thread must call; ends with a barrier.
template <int kGroup, typename Add, typename Out>
SEBLOCK_DEVICE void sum_columns(const Add& add, int outputs, int inputs, int samples,
                                Shared<float> scratch, const Out& out) {
  const int width = power_of_two_at_least(outputs, 8, kBlockThreads);
  const int parts = kBlockThreads / width;
  const int column = thread_index() % width;
#pragma unroll 1
  for (int base = 0; base < outputs; base += width) {
    float sum[kGroup] = {};
    if (base + column < outputs) {
#pragma unroll(kGroup == 1 ? 4 : 2)
      for (int i = thread_index() / width; i < inputs; i += parts) add(base + column, i, sum);
    }
#pragma unroll
    for (int g = 0; g < kGroup; ++g) {
      if (g < samples) scratch[g * kBlockThreads + thread_index()] = sum[g];
    }
    sync_threads();
#pragma unroll 1
    for (int item = thread_index(); item < width * samples; item += kBlockThreads) {
      const int g = item / width;
      const int o = base + item % width;
      float total = 0;
      for (int part = 0; part < parts; ++part)
        total += scratch[g * kBlockThreads + part * width + item % width];
      if (o < outputs) out(o, g, total);
    }
    sync_threads();
  }
}

template <typename Matrix, typename Out>
SEBLOCK_DEVICE void project_columns(const Matrix& matrix, int outputs, int inputs, int samples,
                                    Shared<float> in, int stride, Shared<float> scratch,
                                    const Out& out) {
  const auto add = [&](int o, int i, float (&sum)[kSamples]) {
    const float weight = matrix(o, i);
#pragma unroll
    for (int g = 0; g < kSamples; ++g) {
      if (g < samples) sum[g] += weight * in[g * stride + i];
    }
  };
  sum_columns<kSamples>(add, outputs, inputs, samples, scratch, out);
}

}  // namespace seblock::cuda
