// Scale: the second walk over space. The forward writes y = x * gate, or with a residual
// y = tail(x * gate + residual); the backward dx = dy * gate + shift, with shift = dpooled / S.
//
// A sample is walked in blocks from its end to its beginning: what the squeeze read last is still
// in cache. Large results are streamed past the cache: each block is made in a buffer, whatever the
// alignment of its planes or rows, and leaves it in whole cache lines.
#pragma once

#include "../vec/memory.h"
#include "../vec/stream.h"
#include "relu_mask.h"
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

// What is made of the elements at one place; a Factor holds what depends on the channel alone, for
// one channel in all lanes or for a lane each. `get` reads a tensor at the place in question.
template <typename scalar_type, typename acc_type>
struct TimesGate {
  using scalar_t = scalar_type;
  using acc_t = acc_type;
  using Factor = Vec<acc_t>;
  static constexpr int64_t kFactors = 1;
  const scalar_t* x;  // [N, C, S] or [N, S, C]
  const acc_t* gate;  // [N, C]

  TimesGate repeated(int64_t i, int64_t c, int64_t times, acc_t* room) const {
    TimesGate out = *this;
    out.gate = repeat(gate + i, c, times, room);
    return out;
  }
  SEBLOCK_INLINE Factor one(int64_t i) const { return Factor::all(gate[i]); }
  SEBLOCK_INLINE Factor lanes(int64_t i) const { return load<acc_t>(gate + i); }
  SEBLOCK_INLINE Factor front(int64_t i, int64_t count) const {
    return load_front<acc_t>(gate + i, count, count);
  }
  template <typename Get>
  SEBLOCK_INLINE Vec<acc_t> value(const Get& get, Factor factor) const {
    return get(x) * factor;
  }
};

// y = x * gate + residual, through a ReLU or not.
template <typename scalar_type, typename acc_type, bool kRelu>
struct TimesGatePlusResidual : TimesGate<scalar_type, acc_type> {
  using Base = TimesGate<scalar_type, acc_type>;
  using typename Base::acc_t;
  const scalar_type* residual;  // like x

  TimesGatePlusResidual repeated(int64_t i, int64_t c, int64_t times, acc_t* room) const {
    return {Base::repeated(i, c, times, room), residual};
  }
  template <typename Get>
  SEBLOCK_INLINE Vec<acc_t> value(const Get& get, typename Base::Factor factor) const {
    const Vec<acc_t> sum = Base::value(get, factor) + get(residual);
    return kRelu ? relu(sum) : sum;
  }
};

template <typename scalar_type, typename acc_type>
struct TimesGatePlusShift {
  using scalar_t = scalar_type;
  using acc_t = acc_type;
  struct Factor {
    Vec<acc_t> gate, shift;
  };
  static constexpr int64_t kFactors = 2;
  const scalar_t* dy;  // like x
  const acc_t* gate;   // [N, C]
  const acc_t* shift;  // [N, C]

  TimesGatePlusShift repeated(int64_t i, int64_t c, int64_t times, acc_t* room) const {
    return {dy, repeat(gate + i, c, times, room), repeat(shift + i, c, times, room + c * times)};
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
  template <typename Get>
  SEBLOCK_INLINE Vec<acc_t> value(const Get& get, Factor factor) const {
    return get(dy) * factor.gate + factor.shift;
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

// `count` elements of one plane or row, from index i of the whole tensor on. The last register may
// overlap the one before: it writes the same values again. A piece shorter than a register reaches
// into the slack.
template <typename Op, typename Along>
SEBLOCK_INLINE void scale_piece(const Op& op, const Along& along, int64_t i,
                                typename Op::scalar_t* to, int64_t count, Slack slack) {
  using scalar_t = typename Op::scalar_t;
  using acc_t = typename Op::acc_t;
  constexpr int64_t K = kLanes<acc_t>;
  const auto whole = [&](int64_t k) SEBLOCK_LAMBDA {
    const auto get = [&](const scalar_t* from) SEBLOCK_LAMBDA { return load<acc_t>(from + i + k); };
    store(to + k, op.value(get, along.at(k)));
  };
  for (int64_t k = 0; k + K <= count; k += K) whole(k);
  if (count % K == 0) return;
  if (slack.before + count >= K) {
    whole(count - K);
  } else if (slack.after + count >= K) {
    whole(0);
  } else {
    const auto get = [&](const scalar_t* from)
                         SEBLOCK_LAMBDA { return load_front<acc_t>(from + i, count, count); };
    store_front(to, op.value(get, along.front(count)), count);
  }
}

inline bool worth_streaming(const Problem& problem) {
  const Shape& shape = problem.shape;
  return kCanStream && shape.n * shape.c * shape.s * bytes_of(problem.dtype) >= kStreamBytes;
}

template <typename Op>
struct Scale {
  using scalar_t = typename Op::scalar_t;
  using acc_t = typename Op::acc_t;
  Op op;
  Shape shape;
  Layout layout;
  scalar_t* out;  // [N, C, S] or [N, S, C]
  uint8_t* mask;  // of a ReLU, or null; zeros where two samples share a byte
  bool streamed;

  // One sample, on this thread. While a result is streamed, memory is written and not read:
  // `meanwhile(i)`, once for each line of it, is for fetching what the next stage reads.
  template <typename Meanwhile>
  void sample(int64_t n, const Meanwhile& meanwhile) const {
    const int64_t size = shape.c * shape.s;
    backwards(n, n * size, (n + 1) * size, meanwhile);
  }

  // All samples, on all threads.
  void all(const ThreadPool& pool) const {
    const int64_t size = shape.c * shape.s;
    parallel(pool, 0, shape.n * size, kGrain, [&](int64_t first, int64_t last) {
      while (first < last) {  // one sample at a time, the last one first
        const int64_t n = (last - 1) / size;
        const int64_t begin = at_least(n * size, first);
        backwards(n, begin, last, [](int64_t) {});
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
  template <typename Meanwhile>
  void backwards(int64_t n, int64_t begin, int64_t end, const Meanwhile& meanwhile) const {
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
        stream(lines, first, end, meanwhile);
      } else {
        pieces(lines, first, end, out + first, 0);
        if (mask) write_mask<acc_t>(out + first, first, end, mask);
      }
      end = first;
    }
    if (streamed) stream_fence();
  }

  // Elements [begin, end) by way of the buffer, which after the first piece begins where a cache
  // line of `out` does.
  template <typename Meanwhile>
  void stream(const Lines& lines, int64_t begin, int64_t end, const Meanwhile& meanwhile) const {
    alignas(kCacheLine) scalar_t room[kLine + kBuffer + kLine];
    scalar_t* const buffer = room + kLine;
    const int64_t phase = int64_t(reinterpret_cast<uintptr_t>(out) / sizeof(scalar_t)) % kLine;
    while (begin < end) {
      const int64_t offset = (begin + phase) % kLine;
      const int64_t last = at_most(offset ? begin + kLine - offset : begin + kBuffer, end);
      pieces(lines, begin, last, buffer, kLine);
      if (mask) write_mask<acc_t>(buffer, begin, last, mask);
      const int64_t bytes = (last - begin) * int64_t(sizeof(scalar_t));
      if (offset) {
        __builtin_memcpy(out + begin, buffer, bytes);
      } else {
        stream_copy(out + begin, buffer, bytes, [&](int64_t offset) SEBLOCK_LAMBDA {
          meanwhile(begin + offset / int64_t(sizeof(scalar_t)));
        });
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
        const AlongPlane<Op> plane{lines.op.one(lines.first + line)};
        scale_piece(lines.op, plane, i, to, count, slack);
      } else {
        const int64_t before = at_most(margin, offset);
        const Slack slack{before, at_most(margin, at_most(lines.size - offset, total - i) - count)};
        scale_piece(lines.op, AlongRow<Op>{lines.op, lines.first + offset}, i, to, count, slack);
      }
      i += count;
      to += count;
    }
  }
};

}  // namespace
}  // namespace seblock::cpu
