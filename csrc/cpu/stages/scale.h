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

// Factors along a plane: one channel's. And along a row: channels i, i + 1, ...
template <typename Op>
struct AlongPlane {
  typename Op::Factor factor;

  SEBLOCK_INLINE typename Op::Factor at(int64_t) const { return factor; }
  SEBLOCK_INLINE typename Op::Factor front(int64_t) const { return factor; }
};

template <typename Op>
struct AlongRow {
  const Op& op;
  int64_t i;

  SEBLOCK_INLINE typename Op::Factor at(int64_t k) const { return op.lanes(i + k); }
  SEBLOCK_INLINE typename Op::Factor front(int64_t count) const { return op.front(i, count); }
};

// Elements that may be read and written on either side of a piece: what lands there is overwritten
// later, or is beside the buffer.
struct Slack {
  int64_t before, after;
};

// `count` elements of one plane or row. The last register may overlap the one before: it writes the
// same values again. A piece shorter than a register reaches into the slack.
template <typename Op, typename Along, typename scalar_t>
SEBLOCK_INLINE void scale_piece(const Along& along, const scalar_t* from, scalar_t* to,
                                int64_t count, Slack slack) {
  using acc_t = typename Op::acc_t;
  constexpr int64_t K = kLanes<acc_t>;
  const auto whole = [&](int64_t k) SEBLOCK_LAMBDA {
    store(to + k, Op::apply(load<acc_t>(from + k), along.at(k)));
  };
  for (int64_t k = 0; k + K <= count; k += K) whole(k);
  if (count % K == 0) return;
  if (slack.before + count >= K) {
    whole(count - K);
  } else if (slack.after + count >= K) {
    whole(0);
  } else {
    const Vec<acc_t> value = load_front<acc_t>(from, count, count);
    store_front(to, Op::apply(value, along.front(count)), count);
  }
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
    if (!streamed) {
      while (begin < end) {
        const int64_t first = at_least(end - kBlock, begin);
        block(n, first, end, out + first, 0);
        end = first;
      }
      return;
    }
    alignas(kCacheLine) scalar_t room[kLine + kBuffer + kLine];
    scalar_t* const buffer = room + kLine;
    // Blocks begin where a cache line of `out` does.
    const int64_t phase = int64_t(reinterpret_cast<uintptr_t>(out) / sizeof(scalar_t)) % kLine;
    while (begin < end) {
      const int64_t wanted = at_least(end - kBuffer, 0);
      const int64_t first = at_least(ceil_div(wanted + phase, kLine) * kLine - phase, begin);
      block(n, first, end, buffer, kLine);
      const int64_t bytes = (end - first) * int64_t(sizeof(scalar_t));
      if ((first + phase) % kLine == 0) {
        stream_copy(out + first, buffer, bytes);
      } else {
        __builtin_memcpy(out + first, buffer, bytes);
      }
      end = first;
    }
    stream_fence();
  }

  // Elements [begin, end) to `to`, piece by piece in ascending order; `margin` elements on either
  // side of `to` may be overwritten.
  void block(int64_t n, int64_t begin, int64_t end, scalar_t* to, int64_t margin) const {
    const bool planes = layout == Layout::nchw;
    const int64_t size = planes ? shape.s : shape.c;
    const int64_t total = shape.n * shape.c * shape.s;
    int64_t line = begin / size;
    for (int64_t i = begin; i < end; ++line) {
      const int64_t offset = i - line * size;
      const int64_t count = at_most(size - offset, end - i);
      if (planes) {
        // A factor for all: a piece may read the planes beside it.
        const int64_t before = i == begin ? at_most(margin, i) : 0;
        const Slack slack{before, at_most(margin, total - i - count)};
        scale_piece<Op>(AlongPlane<Op>{op.one(line)}, in + i, to, count, slack);
      } else {
        const int64_t before = at_most(margin, offset);
        const Slack slack{before, at_most(margin, size - offset - count)};
        scale_piece<Op>(AlongRow<Op>{op, n * shape.c + offset}, in + i, to, count, slack);
      }
      i += count;
      to += count;
    }
  }
};

}  // namespace
}  // namespace seblock::cpu
