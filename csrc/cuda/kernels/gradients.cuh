// Weight gradients, the one sum over the samples:
//
//   dW1 [R, C] = dz1^T pooled,   db1 [R] = sum_n dz1
//   dW2 [C, R] = dz2^T hidden,   db2 [C] = sum_n dz2
//
//   block   64 x 64 of dW1 or of dW2; a thread has 4 x 4 of them
//   reads   two [N, 64] strips of dz1, pooled or dz2, z1; writes each gradient once
//
// 16 samples at a time pass through shared memory; while they are used, the next 16 are loaded. The
// order of the sum is that of the samples, in parts of 512 that are added at the end of each.
#pragma once

#include "activation.h"
#include "device/math.cuh"
#include "device/vec.cuh"

namespace seblock::cuda {

template <typename weight, typename acc>
struct Gradients {
  using weight_t = weight;
  using acc_t = acc;
  Shape shape;
  Activation activation;
  const acc_t* pooled;     // [N, C]
  const acc_t* z1;         // [N, R]
  const acc_t* dz1;        // [N, R]
  const acc_t* dz2;        // [N, C]
  weight_t* dreduce;       // [R, C]
  weight_t* dexpand;       // [C, R]
  weight_t* dreduce_bias;  // [R], or null
  weight_t* dexpand_bias;  // [C], or null
};

constexpr int kGradientTile = 64;     // outputs per side
constexpr int kGradientSamples = 16;  // in shared memory at a time
constexpr int kGradientPart = 512;    // samples that are summed before they join the rest

template <typename acc_t>
constexpr int kGradientShared =
    2 * kGradientSamples * kGradientTile * static_cast<int>(sizeof(acc_t));

template <typename Params>
SEBLOCK_DEVICE void weight_gradients(const Params& p, int block) {
  using acc_t = typename Params::acc_t;
  constexpr int kSide = 4, kLoads = kGradientSamples * kGradientTile / kBlockThreads;
  static_assert(kGradientTile == 16 * kSide && kLoads == kSide);

  // 1. Which gradient, which tile.
  const auto tiles_r = static_cast<int>(ceil_div(p.shape.r, kGradientTile));
  const auto tiles_c = static_cast<int>(ceil_div(p.shape.c, kGradientTile));
  const bool reduce = block < tiles_r * tiles_c;
  const int tile = reduce ? block : block - tiles_r * tiles_c;
  const int64_t height = reduce ? p.shape.r : p.shape.c;
  const int64_t width = reduce ? p.shape.c : p.shape.r;
  const int across = reduce ? tiles_c : tiles_r;
  const int64_t row = int64_t{tile / across} * kGradientTile;
  const int64_t column = int64_t{tile % across} * kGradientTile;
  const acc_t* dz = reduce ? p.dz1 : p.dz2;       // [N, height]
  const acc_t* other = reduce ? p.pooled : p.z1;  // [N, width]
  const int thread = thread_index();
  const int lane = thread % kGradientTile, first = thread / kGradientTile;
  const auto dz_tile = shared_memory<acc_t>();                         // [16 samples, 64 rows]
  const auto other_tile = dz_tile + kGradientSamples * kGradientTile;  // [16 samples, 64 columns]

  // 2. Loads of one step: sample first, first + 4, ... of the 16.
  acc_t dz_next[kLoads], other_next[kLoads];
  const auto load_step = [&](int64_t begin) {
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const int64_t n = begin + first + k * (kBlockThreads / kGradientTile);
      const bool inside = n < p.shape.n;
      dz_next[k] =
          inside && row + lane < height ? load<acc_t>(dz + n * height + row + lane) : acc_t(0);
      other_next[k] = inside && column + lane < width
                          ? load<acc_t>(other + n * width + column + lane)
                          : acc_t(0);
    }
  };

  // 3. Sum over the samples; thread (y, x) has rows y + 16 i and columns x + 16 j.
  const int x = thread % 16, y = thread / 16;
  acc_t total[kSide][kSide] = {}, bias_total[kSide] = {};
  acc_t sum[kSide][kSide] = {}, bias_sum[kSide] = {};
  load_step(0);
#pragma unroll 1
  for (int64_t begin = 0; begin < p.shape.n; begin += kGradientSamples) {
    if (begin > 0) sync_threads();
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const int at = (first + k * (kBlockThreads / kGradientTile)) * kGradientTile + lane;
      dz_tile[at] = dz_next[k];
      other_tile[at] = reduce ? other_next[k] : activate(p.activation, other_next[k]).value;
    }
    sync_threads();
    load_step(begin + kGradientSamples);
#pragma unroll 4
    for (int n = 0; n < kGradientSamples; ++n) {
      acc_t left[kSide], right[kSide];
#pragma unroll
      for (int i = 0; i < kSide; ++i) {
        left[i] = dz_tile[n * kGradientTile + y + 16 * i];
        right[i] = other_tile[n * kGradientTile + x + 16 * i];
      }
#pragma unroll
      for (int i = 0; i < kSide; ++i) {
        bias_sum[i] += left[i];
#pragma unroll
        for (int j = 0; j < kSide; ++j)
          sum[i][j] = fused_multiply_add(left[i], right[j], sum[i][j]);
      }
    }
    if ((begin + kGradientSamples) % kGradientPart == 0 || begin + kGradientSamples >= p.shape.n) {
#pragma unroll
      for (int i = 0; i < kSide; ++i) {
        bias_total[i] += bias_sum[i];
        bias_sum[i] = 0;
#pragma unroll
        for (int j = 0; j < kSide; ++j) {
          total[i][j] += sum[i][j];
          sum[i][j] = 0;
        }
      }
    }
  }

  // 4. Write; the first column of tiles writes the bias gradient.
  auto* dweight = reduce ? p.dreduce : p.dexpand;
  auto* dbias = reduce ? p.dreduce_bias : p.dexpand_bias;
#pragma unroll
  for (int i = 0; i < kSide; ++i) {
    const int64_t r = row + y + 16 * i;
    if (r >= height) break;
    if (dbias && column == 0 && x == 0) store(dbias + r, bias_total[i]);
#pragma unroll
    for (int j = 0; j < kSide; ++j) {
      const int64_t c = column + x + 16 * j;
      if (c < width) store(dweight + r * width + c, total[i][j]);
    }
  }
}

}  // namespace seblock::cuda
