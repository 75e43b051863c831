// The gradients of one projection's weight and bias: sums over the samples, always in the same
// order.
#pragma once

#include "product.h"

namespace seblock::cpu {
namespace {

// dbias[i] = sum_n dz[n, i], for i in [begin, end).
template <typename acc_t, typename weight_t>
void sum_over_samples(const acc_t* dz /* [N, I] */, int64_t n, int64_t size, int64_t begin,
                      int64_t end, weight_t* dbias /* [I] */) {
  // A product with a row of ones: the same blocked sums as the weights'.
  const acc_t one = 1;
  multiply_columns(Strided<acc_t>{&one, 0, 0}, 0, 1, Matrix<acc_t>{dz, n, size}, begin, end, dbias);
}

// dweight[i, j] = sum_n dz[n, i] in[n, j] and dbias[i] = sum_n dz[n, i].
template <typename acc_t, typename weight_t>
void weight_gradient(const ThreadPool& pool, const acc_t* dz /* [N, I] */, int64_t n, int64_t rows,
                     const acc_t* in /* [N, J] */, int64_t cols, weight_t* dweight /* [I, J] */,
                     weight_t* dbias /* [I] or null */) {
  const Matrix<acc_t> right{in, n, cols};
  parallel(pool, 0, ceil_div(rows, kTileRows), grain_of(kTileRows * (n + 1) * cols / 4),
           [&](int64_t first, int64_t last) {
             const int64_t begin = first * kTileRows;
             const int64_t end = at_most(last * kTileRows, rows);
             multiply_columns(Strided<acc_t>{dz, 1, rows}, begin, end, right, 0, cols, dweight);
             if (dbias) sum_over_samples(dz, n, rows, begin, end, dbias);
           });
}

}  // namespace
}  // namespace seblock::cpu
