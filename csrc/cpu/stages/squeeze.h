// Squeeze: sums over space, one per sample and channel. The forward sums x, the backward dy * x.
//
// Sums are made in blocks, so that the rounding error grows with the logarithm of S rather than
// with S. What belongs to which block depends on S alone.
#pragma once

#include "../vec/memory.h"
#include "threads.h"

namespace seblock::cpu {
namespace {

// What is summed, by the index of an element in the whole tensor: a register full, or the `count`
// elements that are left. `fetch` asks for what lies kBytes further on.
template <typename scalar_t, typename acc_type>
struct SumOfX {
  using acc_t = acc_type;
  const scalar_t* x;  // [N, C, S] or [N, S, C]
  int64_t size;

  SEBLOCK_INLINE Vec<acc_t> at(int64_t i) const { return load<acc_t>(x + i); }
  template <int64_t kBytes>
  SEBLOCK_INLINE void fetch(int64_t i) const {
    fetch_ahead<kBytes>(x, i);
  }
  SEBLOCK_INLINE Vec<acc_t> front(int64_t i, int64_t count) const {
    return load_front<acc_t>(x + i, count, size - i);
  }
};

template <typename scalar_t, typename acc_type>
struct SumOfDyX {
  using acc_t = acc_type;
  const scalar_t* dy;  // like x
  const scalar_t* x;   // [N, C, S] or [N, S, C]
  int64_t size;

  SEBLOCK_INLINE Vec<acc_t> at(int64_t i) const { return load<acc_t>(dy + i) * load<acc_t>(x + i); }
  template <int64_t kBytes>
  SEBLOCK_INLINE void fetch(int64_t i) const {
    fetch_ahead<kBytes>(dy, i);
    fetch_ahead<kBytes>(x, i);
  }
  SEBLOCK_INLINE Vec<acc_t> front(int64_t i, int64_t count) const {
    return load_front<acc_t>(dy + i, count, size - i) * load_front<acc_t>(x + i, count, size - i);
  }
};

constexpr int64_t kSumBlock = 16;  // terms that one lane adds up one after the other
constexpr int64_t kSumFan = 64;    // sums of one level added up by the next

// The sum of elements [begin, end), left in lanes. Level 0 runs through them in four registers;
// each level above adds up kSumFan sums of the level below.
template <int kLevel, typename Source>
SEBLOCK_INLINE Vec<typename Source::acc_t> sum_run(const Source& source, int64_t begin,
                                                   int64_t end) {
  using V = Vec<typename Source::acc_t>;
  constexpr int64_t K = kLanes<typename Source::acc_t>;
  if constexpr (kLevel == 0) {
    // Short runs need the fetching: the branches at their ends keep the processor from running
    // ahead (planes of 7 x 7: 20% of a forward).
    const auto at = [&](int64_t i) SEBLOCK_LAMBDA {
      source.template fetch<4096>(i);
      return source.at(i);
    };
    V a = V::zero(), b = V::zero(), c = V::zero(), d = V::zero();
    int64_t i = begin;
    for (; i + 4 * K <= end; i += 4 * K) {
      a = a + at(i);
      b = b + at(i + K);
      c = c + at(i + 2 * K);
      d = d + at(i + 3 * K);
    }
    for (; i + K <= end; i += K) a = a + at(i);
    if (i < end) b = b + source.front(i, end - i);
    return (a + b) + (c + d);
  } else {
    constexpr int64_t block = kSumBlock * 4 * K;
    constexpr int64_t step = kLevel == 1 ? block : block * kSumFan;
    if (end - begin <= step) return sum_run<kLevel - 1>(source, begin, end);
    V total = V::zero();
    for (int64_t i = begin; i < end; i += step) {
      total = total + sum_run<kLevel - 1>(source, i, at_most(i + step, end));
    }
    return total;
  }
}

// NCHW: the sums of `count` planes of S elements, at most as many as there are lanes. The walk goes
// from register to register whatever planes they are of (loads stay aligned, if they begin so): the
// one on the border of two planes is shared out.
template <typename Source>
void sum_planes(const Source& source, int64_t s, int64_t plane, int64_t count,
                typename Source::acc_t* sums /* [N, C] */) {
  using acc_t = typename Source::acc_t;
  using V = Vec<acc_t>;
  constexpr int64_t K = kLanes<acc_t>;
  V lanes[K];
  V carry = V::zero();  // what the last border holds of the plane that is next
  int64_t i = plane * s;
  for (int64_t j = 0; j < count; ++j) {
    const int64_t end = (plane + j + 1) * s;
    if (s < K) {  // a border would be one of several
      lanes[j] = source.front(end - s, s);
      continue;
    }
    const int64_t border = i + (end - i) / K * K;
    V sum = carry + sum_run<2>(source, i, border);
    carry = V::zero();
    i = border;
    if (border < end) {
      const V shared = j + 1 < count ? source.at(border) : source.front(border, end - border);
      sum = sum + keep_front(shared, end - border);
      carry = keep_back(shared, end - border);
      i += K;
    }
    lanes[j] = sum;
  }
  for (int64_t j = count; j < K; ++j) lanes[j] = V::zero();
  const V total = reduce_lanes(lanes);
  if (count == K) {
    store(sums + plane, total);
  } else {
    store_front(sums + plane, total, count);
  }
}

// The sum of the eight vectors that lie `stride` apart, as a tree.
template <typename V, typename At>
SEBLOCK_INLINE V sum_eight(int64_t i, int64_t stride, const At& at) {
  const V low = (at(i) + at(i + stride)) + (at(i + 2 * stride) + at(i + 3 * stride));
  i += 4 * stride;
  return low + ((at(i) + at(i + stride)) + (at(i + 2 * stride) + at(i + 3 * stride)));
}

// NHWC: the sums of `rows` rows of C channels from row `first` on, for channels [begin, end). Eight
// rows at a time are added as a tree before they meet `sums`, which stays in the nearest cache; the
// channels that do not fill a register meet in `rest`. The processor's own fetching follows one row
// or a few long ones, not eight at once: a second walk, in the order of addresses, runs ahead of
// the first (rows of 256 channels on Zen 4: less than half the time). The source comes by value: a
// store to `sums` might change one that is somewhere in memory, and it would be read again for
// every register (a third more time).
template <typename Source>
void sum_rows(const Source source, int64_t c, int64_t first, int64_t rows, int64_t begin,
              int64_t end, typename Source::acc_t* sums /* [C] */) {
  using acc_t = typename Source::acc_t;
  constexpr int64_t K = kLanes<acc_t>;
  const int64_t full = begin + (end - begin) / K * K;
  const int64_t count = end - full;
  int64_t row = first * c;
  int64_t ahead = row;
  const auto at = [&](int64_t i) SEBLOCK_LAMBDA {
    source.template fetch<16384>(ahead);
    ahead += K;
    return source.at(i);
  };
  const auto front = [&](int64_t i) SEBLOCK_LAMBDA { return source.front(i, count); };
  Vec<acc_t> rest = Vec<acc_t>::zero();
  for (int64_t j = begin; j < full; j += K) store(sums + j, rest);

  int64_t left = rows;
  for (; left >= 8; left -= 8, row += 8 * c) {
    ahead = row;
    for (int64_t j = begin; j < full; j += K) {
      store(sums + j, load<acc_t>(sums + j) + sum_eight<Vec<acc_t>>(row + j, c, at));
    }
    if (count) rest = rest + sum_eight<Vec<acc_t>>(row + full, c, front);
  }
  for (; left > 0; --left, row += c) {
    for (int64_t j = begin; j < full; j += K) {
      store(sums + j, load<acc_t>(sums + j) + at(row + j));
    }
    if (count) rest = rest + front(row + full);
  }
  if (count) store_front(sums + full, rest, count);
}

// NHWC: the block sums of one sample added up in float64, for channels [begin, end).
template <typename acc_t>
void add_blocks(const acc_t* block_sums /* [blocks, C] */, int64_t blocks, int64_t c, int64_t begin,
                int64_t end, acc_t* sums /* [C] */) {
  constexpr int64_t kChunk = 64;
  for (int64_t chunk = begin; chunk < end; chunk += kChunk) {
    const int64_t count = at_most(end - chunk, kChunk);
    double total[kChunk] = {};
    for (int64_t b = 0; b < blocks; ++b) {
      const acc_t* from = block_sums + b * c + chunk;
      for (int64_t j = 0; j < count; ++j) total[j] += double(from[j]);
    }
    for (int64_t j = 0; j < count; ++j) sums[chunk + j] = acc_t(total[j]);
  }
}

template <typename Source>
struct Squeeze {
  using acc_t = typename Source::acc_t;
  Source source;
  Shape shape;
  Layout layout;
  acc_t* sums;        // [N, C]
  acc_t* block_sums;  // [N, row blocks, C]; not used where there is one block

  // One sample, on this thread.
  void sample(int64_t n) const {
    if (layout == Layout::nchw) {
      for (int64_t group = 0; group < groups(); ++group) planes(n, group);
      return;
    }
    for (int64_t b = 0; b < row_blocks(shape); ++b) row_block(n, b, 0, shape.c);
    finish(n, 0, shape.c);
  }

  // All samples, on all threads.
  void all(const ThreadPool& pool) const {
    if (layout == Layout::nchw) {
      return parallel(pool, 0, shape.n * groups(), grain_of(shape.s * together()),
                      [&](int64_t first, int64_t last) {
                        for (int64_t group = first; group < last; ++group) {
                          planes(group / groups(), group % groups());
                        }
                      });
    }
    // Pieces of rows, and of channels where the rows alone do not occupy every thread.
    const int64_t blocks = row_blocks(shape);
    const int64_t slices = ceil_div(pool.threads, shape.n * blocks);
    const int64_t width = ceil_div(ceil_div(shape.c, slices), 64) * 64;
    const int64_t pieces = ceil_div(shape.c, width);
    const int64_t piece_size = at_most(shape.s, kRowBlock) * at_most(width, shape.c);
    parallel(pool, 0, shape.n * blocks * pieces, grain_of(piece_size),
             [&](int64_t first, int64_t last) {
               for (int64_t task = first; task < last; ++task) {
                 const int64_t begin = task % pieces * width;
                 const int64_t block = task / pieces;
                 row_block(block / blocks, block % blocks, begin, at_most(begin + width, shape.c));
               }
             });
    for (int64_t n = 0; n < shape.n; ++n) {
      parallel(pool, 0, shape.c, grain_of(blocks),
               [&](int64_t begin, int64_t end) { finish(n, begin, end); });
    }
  }

 private:
  // Planes that one thread sums together: as many as there are lanes; of large ones four, so that
  // one sample's are shared out evenly.
  int64_t together() const { return shape.s < 1024 ? kLanes<acc_t> : at_most(4, kLanes<acc_t>); }
  int64_t groups() const { return ceil_div(shape.c, together()); }
  void planes(int64_t n, int64_t group) const {
    const int64_t first = group * together();
    const int64_t count = at_most(shape.c - first, together());
    sum_planes(source, shape.s, n * shape.c + first, count, sums);
  }

  void row_block(int64_t n, int64_t b, int64_t begin, int64_t end) const {
    const int64_t blocks = row_blocks(shape);
    const int64_t rows = at_most(shape.s - b * kRowBlock, kRowBlock);
    acc_t* to = blocks == 1 ? sums + n * shape.c : block_sums + (n * blocks + b) * shape.c;
    sum_rows(source, shape.c, n * shape.s + b * kRowBlock, rows, begin, end, to);
  }

  void finish(int64_t n, int64_t begin, int64_t end) const {
    const int64_t blocks = row_blocks(shape);
    if (blocks == 1) return;
    add_blocks(block_sums + n * blocks * shape.c, blocks, shape.c, begin, end, sums + n * shape.c);
  }
};

}  // namespace
}  // namespace seblock::cpu
