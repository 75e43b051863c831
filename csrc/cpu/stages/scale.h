// Scale: the second walk over space. The forward writes y = x * gate, the backward
// dx = dy * gate + shift, with shift = dpooled / S.
//
// A sample is walked in blocks from its end to its beginning: what the squeeze read last is still
// in cache. Large results are streamed past the cache: each block is made in a buffer, whatever the
// alignment of its planes or rows, and leaves it in whole cache lines.
#pragma once

#include "../vec/memory.h"
#include "../vec/stream.h"
#include "threads.h"

namespace seblock::cpu {
namespace {

// What happens to an element; a Factor holds it for one channel in all lanes, or for a lane each.
template <typename acc_type>
struct TimesGate {
  using acc_t = acc_type;
  using Factor = Vec<acc_t>;
  const acc_t* gate;  // [N, C]

  SEBLOCK_INLINE Factor one(int64_t i) const { return Factor::all(gate[i]); }
  SEBLOCK_INLINE Factor lanes(int64_t i) const { return load<acc_t>(gate + i); }
  SEBLOCK_INLINE Factor front(int64_t i, int64_t count) const {
    return load_front<acc_t>(gate + i, count, count);
  }
  static SEBLOCK_INLINE Vec<acc_t> apply(Vec<acc_t> x, Factor factor) { return x * factor; }
};

template <typename acc_type>
struct TimesGatePlusShift {
  using acc_t = acc_type;
  struct Factor {
    Vec<acc_t> gate, shift;
  };
  const acc_t* gate;   // [N, C]
  const acc_t* shift;  // [N, C]

  SEBLOCK_INLINE Factor one(int64_t i) const {
    return {Vec<acc_t>::all(gate[i]), Vec<acc_t>::all(shift[i])};
  }
  SEBLOCK_INLINE Factor lanes(int64_t i) const {
    return {load<acc_t>(gate + i), load<acc_t>(shift + i)};
  }
  SEBLOCK_INLINE Factor front(int64_t i, int64_t count) const {
    return {load_front<acc_t>(gate + i, count, count), load_front<acc_t>(shift + i, count, count)};
  }
  static SEBLOCK_INLINE Vec<acc_t> apply(Vec<acc_t> dy, Factor factor) {
    return dy * factor.gate + factor.shift;
  }
};

// `count` elements of the plane of channel i. The last register may overlap the one before: it
// writes the same values again.
template <typename Op, typename scalar_t>
SEBLOCK_INLINE void scale_plane(const Op& op, int64_t i, const scalar_t* from, scalar_t* to,
                                int64_t count) {
  using acc_t = typename Op::acc_t;
  constexpr int64_t K = kLanes<acc_t>;
  const typename Op::Factor factor = op.one(i);
  if (count < K) {
    return store_front(to, Op::apply(load_front<acc_t>(from, count, count), factor), count);
  }
  for (int64_t k = 0; k + K <= count; k += K) {
    store(to + k, Op::apply(load<acc_t>(from + k), factor));
  }
  const int64_t last = count - K;
  if (count % K) store(to + last, Op::apply(load<acc_t>(from + last), factor));
}

// `count` elements of a row, of channels i, i + 1, ...
template <typename Op, typename scalar_t>
SEBLOCK_INLINE void scale_row(const Op& op, int64_t i, const scalar_t* from, scalar_t* to,
                              int64_t count) {
  using acc_t = typename Op::acc_t;
  constexpr int64_t K = kLanes<acc_t>;
  if (count < K) {
    const Vec<acc_t> value = load_front<acc_t>(from, count, count);
    return store_front(to, Op::apply(value, op.front(i, count)), count);
  }
  for (int64_t k = 0; k + K <= count; k += K) {
    store(to + k, Op::apply(load<acc_t>(from + k), op.lanes(i + k)));
  }
  const int64_t last = count - K;
  if (count % K) store(to + last, Op::apply(load<acc_t>(from + last), op.lanes(i + last)));
}

template <typename Op, typename scalar_t>
struct Scale {
  Op op;
  Shape shape;
  Layout layout;
  const scalar_t* in;  // [N, C, S] or [N, S, C]
  scalar_t* out;       // like in
  bool streamed;

  // One sample, on this thread.
  void sample(int64_t n) const {
    const int64_t size = shape.c * shape.s;
    backwards(n, n * size, (n + 1) * size);
  }

  // All samples, on all threads.
  void all(const ThreadPool& pool) const {
    const int64_t size = shape.c * shape.s;
    parallel(pool, 0, shape.n * size, kGrain, [&](int64_t first, int64_t last) {
      while (first < last) {  // one sample at a time, the last one first
        const int64_t n = (last - 1) / size;
        const int64_t begin = at_least(n * size, first);
        backwards(n, begin, last);
        last = begin;
      }
    });
  }

 private:
  // A short buffer lets the loads of the next block overlap with the streaming of this one (2 KB
  // against 8 KB: 25% less time); without streaming, longer runs suit the prefetchers.
  static constexpr int64_t kBuffer = 2048 / int64_t(sizeof(scalar_t));
  static constexpr int64_t kBlock = 16384 / int64_t(sizeof(scalar_t));
  static constexpr int64_t kLine = kCacheLine / int64_t(sizeof(scalar_t));

  // Elements [begin, end) of the whole tensor, all of sample n.
  void backwards(int64_t n, int64_t begin, int64_t end) const {
    alignas(kCacheLine) scalar_t buffer[kBuffer];
    // Blocks begin where a cache line of `out` does.
    const int64_t phase = int64_t(reinterpret_cast<uintptr_t>(out) / sizeof(scalar_t)) % kLine;
    while (begin < end) {
      const int64_t wanted = at_least(end - (streamed ? kBuffer : kBlock), 0);
      const int64_t first = at_least(ceil_div(wanted + phase, kLine) * kLine - phase, begin);
      const bool aligned = (first + phase) % kLine == 0;
      if (streamed && aligned) {
        block(n, first, end, buffer);
        stream_copy(out + first, buffer, (end - first) * int64_t(sizeof(scalar_t)));
      } else {
        block(n, first, end, out + first);
      }
      end = first;
    }
    if (streamed) stream_fence();
  }

  // Elements [begin, end) to `to`, plane by plane or row by row.
  void block(int64_t n, int64_t begin, int64_t end, scalar_t* to) const {
    const int64_t size = layout == Layout::nchw ? shape.s : shape.c;
    int64_t line = begin / size;
    for (int64_t i = begin; i < end; ++line) {
      const int64_t count = at_most((line + 1) * size, end) - i;
      if (layout == Layout::nchw) {
        scale_plane(op, line, in + i, to, count);
      } else {
        scale_row(op, n * shape.c + i - line * size, in + i, to, count);
      }
      i += count;
      to += count;
    }
  }
};

}  // namespace
}  // namespace seblock::cpu
