// Strategy S, scale: y = x * gate (forward), dx = dy * gate + shift (backward), gate and shift
// [N, C] over space. With a tail, y = relu(x * gate + residual), and a mask of where y > 0.
#pragma once

#include "device/math.cuh"
#include "device/vec.cuh"

namespace seblock::cuda {

template <typename scalar>
struct Gated {  // y = x * gate
  using scalar_t = scalar;
  using acc_t = acc_of<scalar>;
  static constexpr const char* kName = "scale(x)";
  static constexpr bool kHasTail = true;
  const scalar_t* in;        // x, [N, C, S] or [N, S, C]
  const acc_t* gate;         // [N, C]
  const scalar_t* residual;  // like x, or null
  uint8_t* mask;             // se_types.h, or null; only with a residual

  SEBLOCK_DEVICE acc_t operator()(acc_t value, int64_t channel) const {
    return value * load<acc_t>(gate + channel);
  }
};

template <typename scalar>
struct GatedGradient {  // dx = dy * gate + shift
  using scalar_t = scalar;
  using acc_t = acc_of<scalar>;
  static constexpr const char* kName = "scale(dy)";
  static constexpr bool kHasTail = false;
  const scalar_t* in;  // dy (or dresidual), [N, C, S] or [N, S, C]
  const acc_t* gate;   // [N, C]
  const acc_t* shift;  // [N, C]  dpooled / S

  SEBLOCK_DEVICE acc_t operator()(acc_t value, int64_t channel) const {
    return value * load<acc_t>(gate + channel) + load<acc_t>(shift + channel);
  }
};

template <typename Map>
struct ScaleParams {
  Map map;
  Shape shape;
  typename Map::scalar_t* out;  // like in
  Divisor per_plane;            // S
  Divisor per_row;              // C
};

// Walks neighbouring elements and knows the [N, C] index of each: the one place where the layouts
// differ.
template <Layout kLayout>
class ChannelCursor {
 public:
  SEBLOCK_DEVICE ChannelCursor(int64_t element, const Divisor& per_plane, const Divisor& per_row)
      : period_(per_plane.divisor()) {
    if constexpr (kLayout == Layout::nchw) {
      const DivMod plane = per_plane.divide(element);
      index_ = plane.quotient;
      position_ = plane.remainder;
    } else {  // a vector never leaves its row: the plan asks for C % kVec == 0
      const DivMod row = per_row.divide(element);
      index_ = per_plane.divide(row.quotient).quotient * per_row.divisor() + row.remainder;
    }
  }
  SEBLOCK_DEVICE int64_t index() const { return index_; }
  SEBLOCK_DEVICE void advance() {
    if constexpr (kLayout == Layout::nchw) {
      if (++position_ == period_) {
        position_ = 0;
        ++index_;
      }
    } else {
      ++index_;
    }
  }

 private:
  int64_t index_ = 0;
  int64_t position_ = 0;
  int64_t period_;
};

// The tail, on elements [i, i + kCount): adds the residual and, with a mask, applies the ReLU; bit
// e of the result says that element e passes it, as it will be stored.
template <typename Map, typename acc_t, int kCount>
SEBLOCK_DEVICE unsigned apply_tail(const Map& map, int64_t i, acc_t (&values)[kCount]) {
  unsigned bits = 0;
  if constexpr (Map::kHasTail) {
    if (!map.residual) return 0;
    acc_t added[kCount];
    load(map.residual + i, added);
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      const auto rounded = static_cast<typename Map::scalar_t>(values[e] + added[e]);
      values[e] = static_cast<acc_t>(rounded);
      if (!map.mask) continue;
      if (values[e] <= 0) {
        values[e] = 0;
      } else {
        bits |= 1u << e;
      }
    }
  }
  return bits;
}

// Writes the bits of the kVec elements from `i` on. Single elements meet in the first lane of those
// that share a byte, so every thread of the warp must call.
template <int kVec, typename Map>
SEBLOCK_DEVICE void put_mask(const Map& map, int64_t i, bool inside, unsigned bits) {
  if constexpr (Map::kHasTail) {
    constexpr int kBits = kAccessBytes / static_cast<int>(sizeof(typename Map::scalar_t));
    if (!map.mask) return;
    if constexpr (kVec < kBits) {
      bits <<= i % kBits;
#pragma unroll
      for (int lanes = 1; lanes < kBits; lanes *= 2) bits |= shuffle_xor(bits, lanes);
      inside = inside && i % kBits == 0;
    }
    if (inside) store(map.mask + i / kBits, static_cast<uint8_t>(bits));
  }
}

constexpr int kScaleVectors = 4;  // per thread, loaded before the first is used

// The tensor is one run of vectors; a block takes 4 * 256 neighbouring ones, thread t vectors t, t
// + 256, ... Blocks walk the tensor backwards: what the squeeze read last is still in L2. Reads |x|
// (and the residual) and 1 or 2 N * C * acc, writes |x| (and the mask).
template <typename Map, Layout kLayout, int kVec>
SEBLOCK_KERNEL scale_kernel(ScaleParams<Map> p) {
  using acc_t = typename Map::acc_t;
  const int64_t total = p.shape.n * p.shape.c * p.shape.s;
  const int64_t block = grid_blocks() - 1 - block_index();
  const int64_t first = (block * kScaleVectors * kBlockThreads + thread_index()) * kVec;
  constexpr int64_t kStep = int64_t{kBlockThreads} * kVec;

  // 1. Load.
  acc_t values[kScaleVectors][kVec];
#pragma unroll
  for (int u = 0; u < kScaleVectors; ++u) {
    const int64_t i = first + u * kStep;
    if (i + kVec <= total) load(p.map.in + i, values[u]);
  }
  // 2. Map and store.
#pragma unroll
  for (int u = 0; u < kScaleVectors; ++u) {
    const int64_t i = first + u * kStep;
    const bool inside = i < total;
    unsigned bits = 0;
    if (inside) {
      ChannelCursor<kLayout> channel(i, p.per_plane, p.per_row);
      if (i + kVec <= total) {
#pragma unroll
        for (int e = 0; e < kVec; ++e, channel.advance())
          values[u][e] = p.map(values[u][e], channel.index());
        bits = apply_tail(p.map, i, values[u]);
        store(p.out + i, values[u]);
      } else {  // the last, incomplete vector of the tensor
#pragma unroll 1
        for (int64_t j = i; j < total; ++j, channel.advance()) {
          acc_t one[1] = {p.map(load<acc_t>(p.map.in + j), channel.index())};
          bits |= apply_tail(p.map, j, one) << (j - i);
          store(p.out + j, one[0]);
        }
      }
    }
    put_mask<kVec>(p.map, i, inside, bits);
  }
}

template <int kVec, typename Map>
void launch_scale(const Map& map, const Problem& problem, typename Map::scalar_t* out,
                  void* stream) {
  const ScaleParams<Map> params{map, problem.shape, out, Divisor(problem.shape.s),
                                Divisor(problem.shape.c)};
  const int64_t total = problem.shape.n * problem.shape.c * problem.shape.s;
  const int64_t blocks = ceil_div(total, int64_t{kScaleVectors} * kBlockThreads * kVec);
  if (problem.layout == Layout::nchw) {
    launch(Map::kName, scale_kernel<Map, Layout::nchw, kVec>, blocks, 0, stream, params);
  } else {
    launch(Map::kName, scale_kernel<Map, Layout::nhwc, kVec>, blocks, 0, stream, params);
  }
}

}  // namespace seblock::cuda
