// Scale: the second walk over space. The forward writes y = x * gate, the backward
// dx = dy * gate + shift, with shift = dpooled / S.
//
// A sample is walked from its end to its beginning: what the squeeze read last is still in cache.
#pragma once

#include "../vec/memory.h"
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

// Fewer elements than a register holds.
template <typename Op, typename scalar_t>
SEBLOCK_INLINE void scale_front(typename Op::Factor factor, const scalar_t* in, scalar_t* out,
                                int64_t count) {
  using acc_t = typename Op::acc_t;
  store_front(out, Op::apply(load_front<acc_t>(in, count, count), factor), count);
}

// NCHW: planes [first, last) of S elements. The last register of a plane may overlap the one before: it
// writes the same values again.
template <typename Op, typename scalar_t>
void scale_planes(const Op& op, const scalar_t* in, scalar_t* out, int64_t s, int64_t first,
                  int64_t last) {
  using acc_t = typename Op::acc_t;
  constexpr int64_t K = kLanes<acc_t>;
  for (int64_t plane = first; plane < last; ++plane) {
    const typename Op::Factor factor = op.one(plane);
    const scalar_t* from = in + plane * s;
    scalar_t* to = out + plane * s;
    if (s < K) {
      scale_front<Op>(factor, from, to, s);
      continue;
    }
    for (int64_t i = 0; i + K <= s; i += K) {
      store(to + i, Op::apply(load<acc_t>(from + i), factor));
    }
    if (s % K) store(to + s - K, Op::apply(load<acc_t>(from + s - K), factor));
  }
}

// NHWC: rows [first, last) of the C channels of sample n.
template <typename Op, typename scalar_t>
void scale_rows(const Op& op, const scalar_t* in, scalar_t* out, int64_t c, int64_t n, int64_t first,
                int64_t last) {
  using acc_t = typename Op::acc_t;
  constexpr int64_t K = kLanes<acc_t>;
  for (int64_t row = first; row < last; ++row) {
    const scalar_t* from = in + row * c;
    scalar_t* to = out + row * c;
    if (c < K) {
      scale_front<Op>(op.front(n * c, c), from, to, c);
      continue;
    }
    for (int64_t j = 0; j + K <= c; j += K) {
      store(to + j, Op::apply(load<acc_t>(from + j), op.lanes(n * c + j)));
    }
    if (c % K) store(to + c - K, Op::apply(load<acc_t>(from + c - K), op.lanes(n * c + c - K)));
  }
}

template <typename Op, typename scalar_t>
struct Scale {
  Op op;
  Shape shape;
  Layout layout;
  const scalar_t* in;  // [N, C, S] or [N, S, C]
  scalar_t* out;       // like in

  // A line is what shares one address range: a plane of S (NCHW) or a row of C (NHWC).
  int64_t lines() const { return layout == Layout::nchw ? shape.c : shape.s; }
  int64_t line_size() const { return layout == Layout::nchw ? shape.s : shape.c; }

  // One sample, on this thread.
  void sample(int64_t n) const { backwards(n * lines(), (n + 1) * lines()); }

  // All samples, on all threads.
  void all(const ThreadPool& pool) const {
    parallel(pool, 0, shape.n * lines(), grain_of(line_size()), [&](int64_t first, int64_t last) {
      while (first < last) {  // one sample at a time, the last one first
        const int64_t begin = at_least((last - 1) / lines() * lines(), first);
        backwards(begin, last);
        last = begin;
      }
    });
  }

 private:
  // Lines [first, last) of one sample, in blocks of about 16 KB from the last to the first.
  void backwards(int64_t first, int64_t last) const {
    const int64_t step = at_least(16384 / (line_size() * int64_t(sizeof(scalar_t))), 1);
    const int64_t n = first / lines();
    while (first < last) {
      const int64_t begin = at_least(last - step, first);
      if (layout == Layout::nchw) {
        scale_planes(op, in, out, shape.s, begin, last);
      } else {
        scale_rows(op, in, out, shape.c, n, begin, last);
      }
      last = begin;
    }
  }
};

}  // namespace
}  // namespace seblock::cpu
