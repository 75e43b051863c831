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

// The extent of k that a tile goes through before the next tile has its turn: what the samples of a
// tile have there stays in the nearest cache while the rows of W pass by. Sums of one such chunk
// are added to those of the chunk before.
constexpr int64_t kChunk = 1024;

// Columns [k, k_end) of kRows rows of W against kSamples samples. Rows and samples beyond the end
// repeat the last one, and are not stored.
template <int64_t kRows, int64_t kSamples, typename weight_t, typename acc_t>
void rows_tile(const Matrix<weight_t>& w, const weight_t* bias /* [rows] or null */, int64_t row,
               int64_t row_end, int64_t k, int64_t k_end, const acc_t* in /* [N, cols] */,
               acc_t* out /* [N, rows] */, int64_t n, int64_t n_end) {
  constexpr int64_t K = kLanes<acc_t>;
  constexpr int64_t kSums = kRows * kSamples;
  const bool first = k == 0;
  const weight_t* w_row[kRows];
  const acc_t* in_row[kSamples];
  for (int64_t i = 0; i < kRows; ++i) w_row[i] = w.data + at_most(row + i, row_end - 1) * w.cols;
  for (int64_t i = 0; i < kSamples; ++i) in_row[i] = in + at_most(n + i, n_end - 1) * w.cols;

  Vec<acc_t> sums[ceil_div(kSums, K) * K];
#pragma GCC unroll 32
  for (auto& sum : sums) sum = Vec<acc_t>::zero();
  const auto add = [&](const auto& weight_at, const auto& value_at) SEBLOCK_LAMBDA {
    Vec<acc_t> weights[kRows];
#pragma GCC unroll 16
    for (int64_t i = 0; i < kRows; ++i) weights[i] = weight_at(w_row[i]);
#pragma GCC unroll 16
    for (int64_t s = 0; s < kSamples; ++s) {
      const Vec<acc_t> value = value_at(in_row[s]);
#pragma GCC unroll 16
      for (int64_t i = 0; i < kRows; ++i) {
        sums[i * kSamples + s] = sums[i * kSamples + s] + weights[i] * value;
      }
    }
  };
  const auto whole = [&](const auto* from) SEBLOCK_LAMBDA { return load<acc_t>(from + k); };
  for (; k + K <= k_end; k += K) add(whole, whole);
  if (const int64_t count = k_end - k; count > 0) {
    add(
        [&](const weight_t* from) SEBLOCK_LAMBDA {
          return load_front<acc_t>(from + k, count, w.data + w.rows * w.cols - (from + k));
        },
        // not beyond the row: another thread may be writing the next one
        [&](const acc_t* from)
            SEBLOCK_LAMBDA { return load_front<acc_t>(from + k, count, count); });
  }

  acc_t results[ceil_div(kSums, K) * K];
#pragma GCC unroll 4
  for (int64_t i = 0; i < kSums; i += K) {
    Vec<acc_t> lanes[K];
#pragma GCC unroll 16
    for (int64_t j = 0; j < K; ++j) lanes[j] = sums[i + j];
    store(results + i, reduce_lanes(lanes));
  }
  const int64_t rows = at_most(row_end - row, kRows);
  const int64_t samples = at_most(n_end - n, kSamples);
  for (int64_t i = 0; i < rows; ++i) {
    const acc_t b = first && bias ? load_one<acc_t>(bias + row + i) : acc_t(0);
    for (int64_t s = 0; s < samples; ++s) {
      acc_t& to = out[(n + s) * w.rows + row + i];
      to = (first ? b : to) + results[i * kSamples + s];
    }
  }
}

// Rows [row, row_end) of W for samples [n, n_end).
template <typename weight_t, typename acc_t>
void multiply_rows(const Matrix<weight_t>& w, const weight_t* bias, int64_t row, int64_t row_end,
                   const acc_t* in /* [N, cols] */, acc_t* out /* [N, rows] */, int64_t n,
                   int64_t n_end) {
  constexpr int64_t K = kLanes<acc_t>;
  constexpr int64_t kRows = kRegisters == 32 ? 6 : 3;
  constexpr int64_t kSamples = 4;
  for (int64_t k = 0; k < w.cols; k += kChunk) {
    const int64_t k_end = at_most(k + kChunk, w.cols);
    if (n_end - n == 1) {
      for (int64_t i = row; i < row_end; i += K) {
        rows_tile<K, 1>(w, bias, i, row_end, k, k_end, in, out, n, n_end);
      }
      continue;
    }
    for (int64_t i = row; i < row_end; i += kRows) {
      for (int64_t m = n; m < n_end; m += kSamples) {
        rows_tile<kRows, kSamples>(w, bias, i, row_end, k, k_end, in, out, m, n_end);
      }
    }
  }
}

// The left factor a(i, k), stored either way round.
template <typename acc_t>
struct Strided {
  const acc_t* data;
  int64_t i_stride, k_stride;
};

constexpr int64_t kTileRows = 6;
constexpr int64_t kTileVecs = kRegisters == 32 ? 4 : 2;

// kTileRows rows by kVecs registers of results; `count` of the columns exist where kVecs is 1.
template <int64_t kTileRows, int64_t kVecs, typename acc_t, typename right_t, typename out_t>
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
      // The same row's part in the next tile: rows are too far apart for the processor to guess.
      __builtin_prefetch(b.data + k * b.cols + j + kVecs * K);
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

// Rows [i, i_end) and columns [j, j_end) of the product. The inner loop goes along the smaller
// side, which stays near.
template <typename acc_t, typename right_t, typename out_t>
void multiply_columns(const Strided<acc_t>& a, int64_t i, int64_t i_end, const Matrix<right_t>& b,
                      int64_t j, int64_t j_end, out_t* out /* [., b.cols] */) {
  constexpr int64_t kWide = kTileVecs * kLanes<acc_t>;
  const auto height = [&](int64_t t) {  // four samples at a time make a tile of four
    const int64_t left = i_end - t;
    return left > 4 && left != 8 ? kTileRows : 4;
  };
  const auto width = [&](int64_t u) {
    return j_end - u >= kWide ? kWide : at_most(j_end - u, kLanes<acc_t>);
  };
  const auto tile = [&](int64_t t, int64_t u) {
    const int64_t count = width(u);
    if (height(t) == kTileRows) {
      if (count == kWide) return columns_tile<kTileRows, kTileVecs>(a, t, i_end, b, u, count, out);
      return columns_tile<kTileRows, 1>(a, t, i_end, b, u, count, out);
    }
    if (count == kWide) return columns_tile<4, kTileVecs>(a, t, i_end, b, u, count, out);
    columns_tile<4, 1>(a, t, i_end, b, u, count, out);
  };
  if (i_end - i < j_end - j) {
    for (int64_t u = j; u < j_end; u += width(u)) {
      for (int64_t t = i; t < i_end; t += height(t)) tile(t, u);
    }
  } else {
    for (int64_t t = i; t < i_end; t += height(t)) {
      for (int64_t u = j; u < j_end; u += width(u)) tile(t, u);
    }
  }
}

}  // namespace
}  // namespace seblock::cpu
