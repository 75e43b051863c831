// Scale: the second walk over space.
//
// A sample is walked in blocks from its end to its beginning: what the squeeze read last is still
// in cache. Within a block, addresses ascend, as the prefetchers like it, register by register,
// each aligned in the result: planes (nchw) and rows of channels (nhwc) begin anywhere, and a
// register on the border of two takes the factors of both. So large results can be streamed past
// the cache straight from the registers.
#pragma once

#include "../vec/memory.h"
#include "../vec/stream.h"
#include "relu_mask.h"
#include "scale_op.h"
#include "threads.h"

namespace seblock::cpu {
namespace {

// Where a walk is: in a plane, whose elements share one factor, ...
template <typename Op>
struct Planes {
  using Factor = typename Op::Factor;
  static constexpr int64_t K = kLanes<typename Op::acc_t>;
  const Op& op;
  int64_t size;   // elements of a plane
  int64_t plane;  // index of its factor
  int64_t left;   // elements of it still ahead
  Factor factor;

  // `offset`: elements from the start of the plane.
  Planes(const Op& op, int64_t size, int64_t plane, int64_t offset)
      : op(op), size(size), plane(plane), left(size - offset), factor(op.one(plane)) {}

  // Factors of the register that begins k elements further on in this plane, all of it inside.
  SEBLOCK_INLINE Factor at(int64_t) const { return factor; }
  // Factors of the `count` elements from here on, whatever planes they are of.
  Factor across(int64_t count) const {
    if (count <= left) return factor;
    if (count <= left + size) return Op::join(left, factor, op.one(plane + 1));
    Index<typename Op::acc_t> index;
    int64_t at = plane, end = left;
    for (int64_t j = 0; j < K; ++j) {
      for (; j >= end && j < count; end += size) ++at;
      index[j] = at;
    }
    return op.any(index);
  }
  SEBLOCK_INLINE void advance(int64_t count) {
    left -= count;
    if (left > 0) return;
    for (; left <= 0; left += size) ++plane;
  }
  // To be called where a walk goes on after advance(): at the end there is no such plane.
  SEBLOCK_INLINE void reach() { factor = op.one(plane); }
};

// ... or in a row of channels, a factor each; several rows of few channels count as one.
template <typename Op>
struct Rows {
  using Factor = typename Op::Factor;
  static constexpr int64_t K = kLanes<typename Op::acc_t>;
  const Op& op;
  int64_t size;   // elements of a row
  int64_t first;  // index of its first factor
  int64_t left;   // elements of it still ahead

  Rows(const Op& op, int64_t size, int64_t first, int64_t offset)
      : op(op), size(size), first(first), left(size - offset % size) {}

  SEBLOCK_INLINE Factor at(int64_t k) const { return op.lanes(first + size - left + k); }
  Factor across(int64_t count) const {
    Index<typename Op::acc_t> index;
    int64_t at = size - left - 1;
    for (int64_t j = 0; j < K; ++j) {
      if (j < count && ++at == size) at = 0;
      index[j] = first + at;
    }
    return op.any(index);
  }
  SEBLOCK_INLINE void advance(int64_t count) {
    left -= count;
    while (left <= 0) left += size;
  }
  SEBLOCK_INLINE void reach() {}
};

inline bool worth_streaming(const Problem& problem) {
  const Shape& shape = problem.shape;
  return kCanStream && shape.n * shape.c * shape.s * bytes_of(problem.dtype) >= kStreamBytes;
}

// While a result is streamed, memory is written and not read: once for each line of it, what the
// next stage reads is fetched, in one tensor or two.
template <typename scalar_t>
struct Fetch {
  const scalar_t* first = nullptr;  // null: nothing is fetched
  const scalar_t* second = nullptr;
  int64_t ahead = 0;  // elements

  SEBLOCK_INLINE void at(int64_t i) const {
    if (first) fetch(first, i + ahead);
    if (second) fetch(second, i + ahead);
  }
};

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

  // One sample, on this thread.
  void sample(int64_t n, const Fetch<scalar_t>& next) const {
    const int64_t size = shape.c * shape.s;
    backwards(n, n * size, (n + 1) * size, next);
  }

  // All samples, on all threads.
  void all(const ThreadPool& pool) const {
    const int64_t size = shape.c * shape.s;
    parallel(pool, 0, shape.n * size, kGrain, [&](int64_t first, int64_t last) {
      while (first < last) {  // one sample at a time, the last one first
        const int64_t n = (last - 1) / size;
        const int64_t begin = at_least(n * size, first);
        backwards(n, begin, last, {});
        last = begin;
      }
    });
  }

 private:
  static constexpr int64_t K = kLanes<acc_t>;
  static constexpr int64_t kBlock = 65536 / int64_t(sizeof(scalar_t));
  static constexpr int64_t kLine = kCacheLine / int64_t(sizeof(scalar_t));
  static constexpr int64_t kRepeated = 512;  // factors

  // Elements [begin, end) of the whole tensor, all of sample n.
  void backwards(int64_t n, int64_t begin, int64_t end, const Fetch<scalar_t>& next) const {
    const int64_t start = n * shape.c * shape.s;
    const int64_t factors = n * shape.c;
    if (layout == Layout::nchw) {
      return blocks(begin, end, next, [&](int64_t i) SEBLOCK_LAMBDA {
        const int64_t plane = (i - start) / shape.s;
        return Planes<Op>(op, shape.s, factors + plane, i - start - plane * shape.s);
      });
    }
    const int64_t times = repetitions();
    acc_t room[Op::kFactors * kRepeated];
    const Op repeated = times > 1 ? op.repeated(factors, shape.c, times, room) : op;
    blocks(begin, end, next, [&](int64_t i) SEBLOCK_LAMBDA {
      return Rows<Op>(repeated, shape.c * times, times > 1 ? 0 : factors, i - start);
    });
  }

  // How many rows of few channels are walked as one, if possible so many that registers fill it.
  int64_t repetitions() const {
    const int64_t most = at_most(kRepeated / shape.c, shape.s / 8);
    for (int64_t step = 1; step <= K; step *= 2) {
      if (step * shape.c % K == 0 && most >= step) return most / step * step;
    }
    return at_least(most, 1);
  }

  // lines_at(i): the walk's place at element i.
  template <typename LinesAt>
  SEBLOCK_INLINE void blocks(int64_t begin, int64_t end, const Fetch<scalar_t>& next,
                             const LinesAt& lines_at) const {
    while (begin < end) {
      // Blocks begin where registers do.
      const int64_t first = at_least(end - kBlock, begin);
      const int64_t aligned = at_most(first + to_boundary(first), end);
      const int64_t from = first == begin ? begin : aligned;
      if (streamed) {
        walk<true>(from, end, lines_at(from), next);
      } else {
        walk<false>(from, end, lines_at(from), next);
      }
      end = from;
    }
    if (streamed) stream_fence();
  }

  // Elements from i on to the next one at which a register may be stored aligned.
  int64_t to_boundary(int64_t i) const {
    const auto address = reinterpret_cast<uintptr_t>(out + i);
    return -int64_t(address / sizeof(scalar_t)) & (K - 1);
  }

  template <bool kStream, typename Lines>
  void walk(int64_t i, int64_t end, Lines lines, Fetch<scalar_t> next) const {
    if (const int64_t before = at_most(to_boundary(i), end - i); before > 0) {
      part(lines.op, i, before, lines.across(before));
      lines.advance(before);
      i += before;
    }
    while (i + K <= end) {
      lines.reach();
      const int64_t whole = at_most(lines.left, end - i) / K * K;
      for (int64_t k = 0; k < whole; k += K) {
        put<kStream>(lines.op, i + k, lines.at(k));
        if (kStream && (i + k) % kLine < K) next.at(i + k);
      }
      if (whole == 0) {  // the border of two lines
        put<kStream>(lines.op, i, lines.across(K));
        if (kStream && i % kLine < K) next.at(i);
      }
      const int64_t done = at_least(whole, K);
      lines.advance(done);
      i += done;
    }
    if (i < end) {
      lines.reach();
      part(lines.op, i, end - i, lines.across(end - i));
    }
  }

  // A register full from element i on.
  template <bool kStream>
  SEBLOCK_INLINE void put(const Op& op, int64_t i, typename Op::Factor factor) const {
    const auto get = [&](const scalar_t* from) SEBLOCK_LAMBDA { return load<acc_t>(from + i); };
    const Vec<acc_t> value = op.value(get, factor);
    if constexpr (kStream) {
      stream_register(out + i, stored<scalar_t>(value));
    } else {
      store(out + i, value);
    }
    if constexpr (Op::kMask) write_mask<scalar_t>(value, i, K, mask);
  }

  // The `count` elements from i on, fewer than a register full.
  void part(const Op& op, int64_t i, int64_t count, typename Op::Factor factor) const {
    const int64_t readable = shape.n * shape.c * shape.s - i;
    const auto get = [&](const scalar_t* from)
                         SEBLOCK_LAMBDA { return load_front<acc_t>(from + i, count, readable); };
    const Vec<acc_t> value = op.value(get, factor);
    store_front(out + i, value, count);
    if constexpr (Op::kMask) write_mask<scalar_t>(value, i, count, mask);
  }
};

}  // namespace
}  // namespace seblock::cpu
