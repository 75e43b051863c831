// The two small matrix products that everything between squeeze and scale is made of.
//
//   multiply_rows:    out[n, i] = sum_k in[n, k] W[i, k] + bias[i]   lanes along k     (W1 pooled,
//   W2 hidden) multiply_columns: out[i, j] = sum_k a(i, k) B[k, j]              lanes along j
//   (their transposes,
//                                                                                      and the
//                                                                                      weight
//                                                                                      gradients)
// PyTorch's W1 [R, C] and W2 [C, R] are read in both directions as they are stored. The order of
// the additions for one result depends on k's extent alone.
#pragma once

#include "../vec/memory.h"
#include "threads.h"

namespace seblock::cpu {
namespace {

template <typename T>
struct Matrix {
  const T* data;  // [rows, cols]
  int64_t rows, cols;

  SEBLOCK_INLINE int64_t readable(int64_t row, int64_t col) const {
    return rows * cols - (row * cols + col);
  }
};

// kRows rows of W against kLanes / kRows samples: a register of results. Rows and samples beyond
// the end repeat the last one, and are not stored.
template <int64_t kRows, typename weight_t, typename acc_t>
void rows_tile(const Matrix<weight_t>& w, const weight_t* bias /* [rows] or null */, int64_t row,
               int64_t row_end, const acc_t* in /* [N, cols] */, acc_t* out /* [N, rows] */,
               int64_t n, int64_t n_end) {
  constexpr int64_t K = kLanes<acc_t>;
  constexpr int64_t kSamples = K / kRows;
  const weight_t* w_row[kRows];
  const acc_t* in_row[kSamples];
  for (int64_t i = 0; i < kRows; ++i) w_row[i] = w.data + at_most(row + i, row_end - 1) * w.cols;
  for (int64_t i = 0; i < kSamples; ++i) in_row[i] = in + at_most(n + i, n_end - 1) * w.cols;

  Vec<acc_t> sums[K];
#pragma GCC unroll 16
  for (int64_t i = 0; i < K; ++i) sums[i] = Vec<acc_t>::zero();
  int64_t k = 0;
  for (; k + K <= w.cols; k += K) {
    Vec<acc_t> values[kSamples];
#pragma GCC unroll 16
    for (int64_t s = 0; s < kSamples; ++s) values[s] = load<acc_t>(in_row[s] + k);
#pragma GCC unroll 16
    for (int64_t i = 0; i < kRows; ++i) {
      const Vec<acc_t> weight = load<acc_t>(w_row[i] + k);
#pragma GCC unroll 16
      for (int64_t s = 0; s < kSamples; ++s) {
        sums[i * kSamples + s] = sums[i * kSamples + s] + weight * values[s];
      }
    }
  }
  if (const int64_t count = w.cols - k; count > 0) {
    Vec<acc_t> values[kSamples];
    // `in` is not read beyond its row: another thread may be writing the next one.
#pragma GCC unroll 16
    for (int64_t s = 0; s < kSamples; ++s)
      values[s] = load_front<acc_t>(in_row[s] + k, count, count);
#pragma GCC unroll 16
    for (int64_t i = 0; i < kRows; ++i) {
      const int64_t readable = w.data + w.rows * w.cols - (w_row[i] + k);
      const Vec<acc_t> weight = load_front<acc_t>(w_row[i] + k, count, readable);
#pragma GCC unroll 16
      for (int64_t s = 0; s < kSamples; ++s) {
        sums[i * kSamples + s] = sums[i * kSamples + s] + weight * values[s];
      }
    }
  }

  acc_t results[K];
  store(results, reduce_lanes(sums));
  const int64_t rows = at_most(row_end - row, kRows);
  const int64_t samples = at_most(n_end - n, kSamples);
  for (int64_t i = 0; i < rows; ++i) {
    const acc_t b = bias ? load_one<acc_t>(bias + row + i) : acc_t(0);
    for (int64_t s = 0; s < samples; ++s) {
      out[(n + s) * w.rows + row + i] = results[i * kSamples + s] + b;
    }
  }
}

// Rows [row, row_end) of W for samples [n, n_end).
template <typename weight_t, typename acc_t>
void multiply_rows(const Matrix<weight_t>& w, const weight_t* bias, int64_t row, int64_t row_end,
                   const acc_t* in /* [N, cols] */, acc_t* out /* [N, rows] */, int64_t n,
                   int64_t n_end) {
  constexpr int64_t K = kLanes<acc_t>;
  constexpr int64_t kRows = K < 4 ? K : 4;
  if (n_end - n == 1) {
    for (; row < row_end; row += K) rows_tile<K>(w, bias, row, row_end, in, out, n, n_end);
    return;
  }
  for (; row < row_end; row += kRows) {
    for (int64_t m = n; m < n_end; m += K / kRows) {
      rows_tile<kRows>(w, bias, row, row_end, in, out, m, n_end);
    }
  }
}

// The left factor a(i, k), stored either way round.
template <typename acc_t>
struct Strided {
  const acc_t* data;
  int64_t i_stride, k_stride;
};

constexpr int64_t kTileRows = 4;
constexpr int64_t kTileVecs = kRegisters == 32 ? 4 : 2;

// kTileRows rows by kVecs registers of results; `count` of the columns exist where kVecs is 1.
template <int64_t kVecs, typename acc_t, typename right_t, typename out_t>
void columns_tile(const Strided<acc_t>& a, int64_t i, int64_t i_end, const Matrix<right_t>& b,
                  int64_t j, int64_t count, out_t* out /* [., b.cols] */) {
  constexpr int64_t K = kLanes<acc_t>;
  constexpr int64_t kBlock = 64;  // running sums of at most this many terms
  const acc_t* a_row[kTileRows];
  for (int64_t t = 0; t < kTileRows; ++t)
    a_row[t] = a.data + at_most(i + t, i_end - 1) * a.i_stride;

  Vec<acc_t> total[kTileRows * kVecs];
  for (int64_t t = 0; t < kTileRows * kVecs; ++t) total[t] = Vec<acc_t>::zero();
  for (int64_t block = 0; block < b.rows; block += kBlock) {
    const int64_t block_end = at_most(block + kBlock, b.rows);
    Vec<acc_t> sums[kTileRows * kVecs];
#pragma GCC unroll 16
    for (int64_t t = 0; t < kTileRows * kVecs; ++t) sums[t] = Vec<acc_t>::zero();
    for (int64_t k = block; k < block_end; ++k) {
      Vec<acc_t> right[kVecs];
#pragma GCC unroll 16
      for (int64_t v = 0; v < kVecs; ++v) {
        const right_t* from = b.data + k * b.cols + j + v * K;
        right[v] = kVecs > 1 ? load<acc_t>(from) : load_front<acc_t>(from, count, b.readable(k, j));
      }
#pragma GCC unroll 16
      for (int64_t t = 0; t < kTileRows; ++t) {
        const Vec<acc_t> left = Vec<acc_t>::all(a_row[t][k * a.k_stride]);
#pragma GCC unroll 16
        for (int64_t v = 0; v < kVecs; ++v) {
          sums[t * kVecs + v] = sums[t * kVecs + v] + left * right[v];
        }
      }
    }
#pragma GCC unroll 16
    for (int64_t t = 0; t < kTileRows * kVecs; ++t) total[t] = total[t] + sums[t];
  }

  for (int64_t t = 0; t < at_most(i_end - i, kTileRows); ++t) {
    for (int64_t v = 0; v < kVecs; ++v) {
      out_t* to = out + (i + t) * b.cols + j + v * K;
      if (kVecs > 1 || count == K) {
        store(to, total[t * kVecs + v]);
      } else {
        store_front(to, total[t * kVecs + v], count);
      }
    }
  }
}

// Rows [i, i_end) and columns [j, j_end) of the product.
template <typename acc_t, typename right_t, typename out_t>
void multiply_columns(const Strided<acc_t>& a, int64_t i, int64_t i_end, const Matrix<right_t>& b,
                      int64_t j, int64_t j_end, out_t* out /* [., b.cols] */) {
  constexpr int64_t K = kLanes<acc_t>;
  while (j < j_end) {
    const bool wide = j + kTileVecs * K <= j_end;
    const int64_t width = wide ? kTileVecs * K : at_most(j_end - j, K);
    for (int64_t t = i; t < i_end; t += kTileRows) {
      if (wide) {
        columns_tile<kTileVecs>(a, t, i_end, b, j, width, out);
      } else {
        columns_tile<1>(a, t, i_end, b, j, width, out);
      }
    }
    j += width;
  }
}

}  // namespace
}  // namespace seblock::cpu
