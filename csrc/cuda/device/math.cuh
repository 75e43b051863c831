// Sums, in a fixed order. A multiplication and an addition are fused where the code says so and
// nowhere else: it is compiled with -fmad=false, so that the bits are the same in every kernel.
#pragma once

#include <cmath>

#include "platform.cuh"
#include "tiling.h"

namespace seblock::cuda {

SEBLOCK_DEVICE float fused_multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
SEBLOCK_DEVICE double fused_multiply_add(double a, double b, double c) { return fma(a, b, c); }

// Sum over aligned groups of `lanes` neighbouring threads of a warp, lanes a power of two up to 32.
// Every thread of the warp must call; every thread of the group gets the sum.
template <typename T>
SEBLOCK_DEVICE T group_sum(T value, int lanes) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// The sum of at(0) ... at(count - 1): part i goes to chain i mod 8, the chains are added in order.
// Loads are in flight together, up to 16.
template <typename acc_t, typename At>
SEBLOCK_DEVICE acc_t sum_in_chains(int count, const At& at) {
  constexpr int kChains = 8;
  if (count == 1) return at(0);
  acc_t chain[kChains] = {};
#pragma unroll 2
  for (int first = 0; first < count; first += kChains) {
    acc_t part[kChains];
#pragma unroll
    for (int i = 0; i < kChains; ++i) part[i] = first + i < count ? acc_t(at(first + i)) : acc_t(0);
#pragma unroll
    for (int i = 0; i < kChains; ++i) chain[i] += part[i];
  }
#pragma unroll
  for (int i = 1; i < kChains; ++i) chain[0] += chain[i];
  return chain[0];
}

// The sum of a few values, neighbours first.
template <typename acc_t, int kCount>
SEBLOCK_DEVICE acc_t pairwise_sum(const acc_t (&in)[kCount]) {
  acc_t sum[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) sum[i] = in[i];
#pragma unroll
  for (int step = 1; step < kCount; step *= 2) {
#pragma unroll
    for (int i = 0; i < kCount; i += 2 * step) sum[i] += sum[i + step];
  }
  return sum[0];
}

// 16 bytes of sums in shared memory, moved together.
template <typename acc_t>
struct alignas(16) Quad {
  static constexpr int kCount = 16 / static_cast<int>(sizeof(acc_t));
  acc_t value[kCount];
};

// put(q, quad) for every quad of the values.
template <typename acc_t, int kCount, typename Put>
SEBLOCK_DEVICE void in_quads(const acc_t (&values)[kCount], const Put& put) {
  constexpr int kQuad = Quad<acc_t>::kCount;
#pragma unroll
  for (int q = 0; q < kCount / kQuad; ++q) {
    Quad<acc_t> quad;
#pragma unroll
    for (int e = 0; e < kQuad; ++e) quad.value[e] = values[q * kQuad + e];
    put(q, quad);
  }
}

}  // namespace seblock::cuda
