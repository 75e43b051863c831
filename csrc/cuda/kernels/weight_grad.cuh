// Weight gradients, summed over the samples in a fixed order:
//   dW1 [R, C] = dz1^T pooled,   db1 [R] = sum_n dz1
//   dW2 [C, R] = dz2^T hidden,   db2 [C] = sum_n dz2
#pragma once

#include "activation.h"
#include "device/math.cuh"
#include "device/vec.cuh"

namespace seblock::cuda {

template <typename weight, typename acc>
struct WeightGradParams {
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

constexpr int kTile = 32;                                      // outputs per side of a block's tile
constexpr int kRowsPerThread = kTile * kTile / kBlockThreads;  // 4

// Block = one 32 x 32 tile of dW1 or of dW2 (blocks 0.. take dW1, the rest dW2); a thread holds 4
// rows of one column. 32 samples at a time pass through shared memory: dz [32, 32] and the other
// factor [32, 32]. Reads N * (C + R) * acc once per 32 rows or columns, writes each gradient once.
template <typename Params>
SEBLOCK_KERNEL weight_grad_kernel(Params p) {
  using acc_t = typename Params::acc_t;
  const int tiles_r = static_cast<int>(ceil_div(p.shape.r, kTile));
  const int tiles_c = static_cast<int>(ceil_div(p.shape.c, kTile));

  // 1. Which gradient, which tile.
  const bool reduce = block_index() < tiles_r * tiles_c;
  const int tile = reduce ? block_index() : block_index() - tiles_r * tiles_c;
  const int64_t height = reduce ? p.shape.r : p.shape.c;
  const int64_t width = reduce ? p.shape.c : p.shape.r;
  const int64_t row = int64_t{tile / (reduce ? tiles_c : tiles_r)} * kTile;
  const int64_t column = int64_t{tile % (reduce ? tiles_c : tiles_r)} * kTile;
  const acc_t* dz = reduce ? p.dz1 : p.dz2;       // [N, height]
  const acc_t* other = reduce ? p.pooled : p.z1;  // [N, width]
  const int lane = thread_index() % kTile;
  const int first_row = thread_index() / kTile * kRowsPerThread;
  const auto dz_tile = shared_memory<acc_t>();      // [32 samples, 32 rows]
  const auto other_tile = dz_tile + kTile * kTile;  // [32 samples, 32 columns]

  // 2. Sum over the samples.
  acc_t sum[kRowsPerThread] = {};
  acc_t bias_sum[kRowsPerThread] = {};
  for (int64_t begin = 0; begin < p.shape.n; begin += kTile) {
    sync_threads();
    for (int k = 0; k < kRowsPerThread; ++k) {
      const int64_t n = begin + first_row + k;
      const bool row_inside = n < p.shape.n && row + lane < height;
      const bool column_inside = n < p.shape.n && column + lane < width;
      acc_t factor = column_inside ? load<acc_t>(other + n * width + column + lane) : acc_t(0);
      if (!reduce && column_inside) factor = activate(p.activation, factor).value;
      dz_tile[(first_row + k) * kTile + lane] =
          row_inside ? load<acc_t>(dz + n * height + row + lane) : acc_t(0);
      other_tile[(first_row + k) * kTile + lane] = factor;
    }
    sync_threads();
    for (int n = 0; n < kTile; ++n) {
      const acc_t factor = other_tile[n * kTile + lane];
#pragma unroll
      for (int k = 0; k < kRowsPerThread; ++k) {
        const acc_t gradient = dz_tile[n * kTile + first_row + k];
        sum[k] += gradient * factor;
        bias_sum[k] += gradient;
      }
    }
  }
  // 3. Write; the first column of tiles writes the bias gradient.
  auto* dweight = reduce ? p.dreduce : p.dexpand;
  auto* dbias = reduce ? p.dreduce_bias : p.dexpand_bias;
#pragma unroll
  for (int k = 0; k < kRowsPerThread; ++k) {
    const int64_t r = row + first_row + k;
    if (r >= height) break;
    if (column + lane < width) store(dweight + r * width + column + lane, sum[k]);
    if (dbias && column == 0 && lane == 0) store(dbias + r, bias_sum[k]);
  }
}

template <typename Params>
void launch_weight_grad(const Params& params, void* stream) {
  const int64_t blocks = 2 * ceil_div(params.shape.r, kTile) * ceil_div(params.shape.c, kTile);
  launch("weight_grad", weight_grad_kernel<Params>, blocks,
         2 * kTile * kTile * sizeof(typename Params::acc_t), stream, params);
}

}  // namespace seblock::cuda
