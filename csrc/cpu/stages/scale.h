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

// C values, written `times` times one after the other.
template <typename acc_t>
const acc_t* repeat(const acc_t* values, int64_t c, int64_t times, acc_t* room) {
  for (int64_t i = 0; i < c; ++i) room[i] = values[i];
  for (int64_t i = c; i < c * times; ++i) room[i] = room[i - c];
  return room;
}

// What happens to an element; a Factor holds it for one channel in all lanes, or for a lane each.
template <typename acc_type>
struct TimesGate {
  using acc_t = acc_type;
  using Factor = Vec<acc_t>;
  static constexpr int64_t kFactors = 1;
  const acc_t* gate;  // [N, C]

  TimesGate repeated(int64_t i, int64_t c, int64_t times, acc_t* room) const {
    return {repeat(gate + i, c, times, room)};
  }
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
  static constexpr int64_t kFactors = 2;
  const acc_t* gate;   // [N, C]
  const acc_t* shift;  // [N, C]

  TimesGatePlusShift repeated(int64_t i, int64_t c, int64_t times, acc_t* room) const {
    return {repeat(gate + i, c, times, room), repeat(shift + i, c, times, room + c * times)};
  }
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
  using acc_t = typename Op::acc_t;
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
  // Blocks go backwards, so as to meet what the squeeze left in cache; inside, addresses ascend, as
  // the prefetchers like it. The buffer is short, so that the loads of the next piece overlap with
  // the streaming of this one (2 KB against 8 KB: 25% less time).
  static constexpr int64_t kBlock = 65536 / int64_t(sizeof(scalar_t));
  static constexpr int64_t kBuffer = 2048 / int64_t(sizeof(scalar_t));
  static constexpr int64_t kLine = kCacheLine / int64_t(sizeof(scalar_t));
  static constexpr int64_t kRepeated = 512;  // factors

  // What shares one factor (a plane), or one run of factors (a row, or several rows of few
  // channels).
  struct Lines {
    Op op;
    int64_t size;   // elements of a line
    int64_t start;  // of the sample, in elements of the whole tensor
    int64_t first;  // factor of the sample
  };

  // Elements [begin, end) of the whole tensor, all of sample n.
  void backwards(int64_t n, int64_t begin, int64_t end) const {
    acc_t room[Op::kFactors * kRepeated];
    Lines lines{op, layout == Layout::nchw ? shape.s : shape.c, n * shape.c * shape.s, n * shape.c};
    const int64_t times = at_most(kRepeated / shape.c, shape.s / 8);
    if (layout == Layout::nhwc && times > 1) {
      lines.op = op.repeated(lines.first, shape.c, times, room);
      lines.size = shape.c * times;
      lines.first = 0;
    }
    while (begin < end) {
      const int64_t first = at_least(end - kBlock, begin);
      if (streamed) {
        stream(lines, first, end);
      } else {
        pieces(lines, first, end, out + first, 0);
      }
      end = first;
    }
    if (streamed) stream_fence();
  }

  // Elements [begin, end) by way of the buffer, which after the first piece begins where a cache
  // line of `out` does.
  void stream(const Lines& lines, int64_t begin, int64_t end) const {
    alignas(kCacheLine) scalar_t room[kLine + kBuffer + kLine];
    scalar_t* const buffer = room + kLine;
    const int64_t phase = int64_t(reinterpret_cast<uintptr_t>(out) / sizeof(scalar_t)) % kLine;
    while (begin < end) {
      const int64_t offset = (begin + phase) % kLine;
      const int64_t last = at_most(offset ? begin + kLine - offset : begin + kBuffer, end);
      pieces(lines, begin, last, buffer, kLine);
      const int64_t bytes = (last - begin) * int64_t(sizeof(scalar_t));
      if (offset) {
        __builtin_memcpy(out + begin, buffer, bytes);
      } else {
        stream_copy(out + begin, buffer, bytes);
      }
      begin = last;
    }
  }

  // Elements [begin, end) to `to`, line by line; `margin` elements on either side of `to` may be
  // overwritten.
  void pieces(const Lines& lines, int64_t begin, int64_t end, scalar_t* to, int64_t margin) const {
    const int64_t total = shape.n * shape.c * shape.s;
    int64_t line = (begin - lines.start) / lines.size;
    for (int64_t i = begin; i < end; ++line) {
      const int64_t offset = i - lines.start - line * lines.size;
      const int64_t count = at_most(lines.size - offset, end - i);
      if (layout == Layout::nchw) {
        // One factor for all: a piece may read the planes beside it.
        const int64_t before = i == begin ? at_most(margin, i) : 0;
        const Slack slack{before, at_most(margin, total - i - count)};
        scale_piece<Op>(AlongPlane<Op>{lines.op.one(lines.first + line)}, in + i, to, count, slack);
      } else {
        const int64_t before = at_most(margin, offset);
        const Slack slack{before, at_most(margin, at_most(lines.size - offset, total - i) - count)};
        scale_piece<Op>(AlongRow<Op>{lines.op, lines.first + offset}, in + i, to, count, slack);
      }
      i += count;
      to += count;
    }
  }
};

}  // namespace
}  // namespace seblock::cpu
