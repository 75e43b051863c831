// Stage scale: y = x * gate (forward), dx = dy * gate + shift (backward).
//
//   block   nhwc: a strip of one sample; nchw: a run of 4 * 256 vectors, wherever planes begin
//   reads   x (the residual); backward: dy, or dresidual; gate, shift [N, C]
//   writes  y and the mask; backward: dx
//
// A vector has one writer. A Map says what is computed.
#pragma once

#include "device/math.cuh"
#include "device/vec.cuh"
#include "tiling.h"

namespace seblock::cuda {

// ---- Maps ----

template <typename scalar, bool kTail>
struct Gated {  // y = x * gate; kTail: y = relu(x * gate + residual), and where y > 0
  using scalar_t = scalar;
  using acc_t = acc_of<scalar>;
  static constexpr const char* kName = "scale(x)";
  static constexpr int kInFlight = kTail ? kVectors / 2 : kVectors;
  const scalar_t* x;         // [N, C, S] or [N, S, C]
  const acc_t* gate;         // [N, C]
  const scalar_t* residual;  // like x; kTail: or null
  uint8_t* mask;             // a byte per vector (se_types.h), or null
  scalar_t* y;               // like x

  struct Loaded {
    Vector<scalar_t> in, residual;
  };
  // For the sample that begins at `start`, with vector `vector` and channel `channel` of [N, C].
  SEBLOCK_DEVICE Gated at(int64_t start, int64_t vector, int64_t channel) const {
    return {x + start, in_register(gate + channel), residual ? residual + start : nullptr,
            mask ? mask + vector : nullptr, y + start};
  }
  static constexpr bool kWrittenBefore = true;  // x is there before the launch
  template <bool kAligned>
  SEBLOCK_DEVICE void load_in(const Place<offset_of<kAligned>>& place, Loaded& loaded) const {
    loaded.in = load_vector<kAligned, Use::last>(x, place);
  }
  template <bool kAligned>
  SEBLOCK_DEVICE void load_rest(const Place<offset_of<kAligned>>& place, Loaded& loaded) const {
    if (kTail && residual) loaded.residual = load_vector<kAligned, Use::last>(residual, place);
  }
  struct Factor {
    acc_t gate;
  };
  SEBLOCK_DEVICE Factor factor(int64_t channel) const { return {load<acc_t>(gate + channel)}; }
  SEBLOCK_DEVICE void four_factors(int64_t channel, Factor (&out)[4]) const {
    const Four<acc_t> gates = load_four(gate + channel);
#pragma unroll
    for (int e = 0; e < 4; ++e) out[e] = {gates.value[e]};
  }
  template <bool kAligned, typename FactorOf>
  SEBLOCK_DEVICE void write(const Loaded& loaded, const Place<offset_of<kAligned>>& place,
                            const FactorOf& factor_of) const {
    constexpr int kL = kVec<scalar_t>;
    acc_t value[kL];
    widen(loaded.in, value);
#pragma unroll
    for (int e = 0; e < kL; ++e) value[e] *= factor_of(e).gate;
    if (kTail && residual) {
      acc_t added[kL];
      widen(loaded.residual, added);
#pragma unroll
      for (int e = 0; e < kL; ++e) value[e] += added[e];
    }
    Vector<scalar_t> out = narrow(value, scalar_t{});
    if (kTail && mask) {
      widen(out, value);  // as it is stored; NaN passes
      unsigned bits = 0;
#pragma unroll
      for (int e = 0; e < kL; ++e) bits |= value[e] <= 0 || e >= place.valid ? 0u : 1u << e;
      keep(out, bits);
      store(mask + place.vector, static_cast<uint8_t>(bits));
    }
    store_vector<kAligned, Use::last>(y, place, out);
  }
};

template <typename scalar, bool kMasked>
struct GatedGradient {  // dx = dy * gate + shift
  using scalar_t = scalar;
  using acc_t = acc_of<scalar>;
  static constexpr const char* kName = "scale(dy)";
  static constexpr int kInFlight = kVectors;
  const scalar_t* in;  // dy; kMasked: dresidual
  const acc_t* gate;   // [N, C]
  const acc_t* shift;  // [N, C]  dpooled / S
  scalar_t* dx;        // like dy

  struct Loaded {
    Vector<scalar_t> in;
  };
  SEBLOCK_DEVICE GatedGradient at(int64_t start, int64_t, int64_t channel) const {
    return {in + start, in_register(gate + channel), in_register(shift + channel), dx + start};
  }
  static constexpr bool kWrittenBefore = !kMasked;  // the squeeze writes dresidual
  template <bool kAligned>
  SEBLOCK_DEVICE void load_in(const Place<offset_of<kAligned>>& place, Loaded& loaded) const {
    loaded.in = load_vector<kAligned, Use::last>(in, place);
  }
  template <bool kAligned>
  SEBLOCK_DEVICE void load_rest(const Place<offset_of<kAligned>>&, Loaded&) const {}
  struct Factor {
    acc_t gate, shift;
  };
  SEBLOCK_DEVICE Factor factor(int64_t channel) const {
    return {load<acc_t>(gate + channel), load<acc_t>(shift + channel)};
  }
  SEBLOCK_DEVICE void four_factors(int64_t channel, Factor (&out)[4]) const {
    const Four<acc_t> gates = load_four(gate + channel), shifts = load_four(shift + channel);
#pragma unroll
    for (int e = 0; e < 4; ++e) out[e] = {gates.value[e], shifts.value[e]};
  }
  template <bool kAligned, typename FactorOf>
  SEBLOCK_DEVICE void write(const Loaded& loaded, const Place<offset_of<kAligned>>& place,
                            const FactorOf& factor_of) const {
    acc_t value[kVec<scalar_t>];
    widen(loaded.in, value);
#pragma unroll
    for (int e = 0; e < kVec<scalar_t>; ++e) {
      const Factor factor = factor_of(e);
      value[e] = fused_multiply_add(value[e], factor.gate, factor.shift);
    }
    store_vector<kAligned, Use::last>(dx, place, narrow(value, scalar_t{}));
  }
};

// ---- The stage ----

template <bool kAligned, typename Map>
class Scale {
 public:
  using scalar_t = typename Map::scalar_t;
  using offset_t = offset_of<kAligned>;
  using Factor = typename Map::Factor;
  static constexpr int kL = kVec<scalar_t>;

  // `map` is that of the sample.
  SEBLOCK_DEVICE Scale(const Map& map, const Shape& shape, const Tiling& tiling)
      : map_(map), shape_(shape), tiling_(tiling) {}

  // `wait` returns once the factors are there. Every thread must call.
  template <Layout kLayout, typename Wait>
  SEBLOCK_DEVICE void run(int task, const Wait& wait) const {
    if constexpr (kLayout == Layout::nhwc) {
      rows(task, wait);
    } else {
      planes(task, wait);
    }
  }

 private:
  // Loads and writes this thread's vectors, those of which `inside` says so. prepare() comes
  // between the first loads and the first use: factors are read there at the earliest.
  template <typename Inside, typename PlaceOf, typename Prepare, typename Write>
  SEBLOCK_DEVICE void vectors(const Inside& inside, const PlaceOf& place_of, const Prepare& prepare,
                              const Write& write) const {
    if constexpr (!Map::kWrittenBefore) prepare();
    constexpr int kInFlight = kAligned ? Map::kInFlight : 1;
    constexpr int kUnroll = kAligned ? kVectors / kInFlight : 1;
#pragma unroll kUnroll
    for (int first = 0; first < kVectors; first += kInFlight) {
      typename Map::Loaded loaded[kInFlight];
#pragma unroll
      for (int u = 0; u < kInFlight; ++u) {
        loaded[u] = {};  // or the registers would be kept for it from task to task
        if (!inside(first + u)) continue;
        map_.template load_in<kAligned>(place_of(first + u), loaded[u]);
        map_.template load_rest<kAligned>(place_of(first + u), loaded[u]);
      }
      if constexpr (Map::kWrittenBefore) {
        if (first == 0) prepare();
      }
#pragma unroll
      for (int u = 0; u < kInFlight; ++u) {
        if (inside(first + u)) write(first + u, loaded[u]);
      }
    }
  }

  SEBLOCK_DEVICE Place<offset_t> place(int64_t vector, int64_t offset, int64_t left) const {
    if constexpr (kAligned) return {static_cast<offset_t>(vector), 0, kL};
    return {static_cast<offset_t>(vector), static_cast<offset_t>(offset),
            left < kL ? static_cast<int>(left) : kL};
  }

  // Thread (group, lane) stays on its channels: their factors in registers.
  template <typename Wait>
  SEBLOCK_DEVICE void rows(int strip, const Wait& wait) const {
    const int part = tiling_.by_inner.divide(strip);
    const int column = strip - part * tiling_.inner;
    const int lanes = tiling_.lanes, groups = tiling_.groups, thread = thread_index();
    const int group = tiling_.by_lanes.divide(thread), lane = thread - group * lanes;
    const auto row_vectors = static_cast<offset_t>(ceil_div(shape_.c, kL));
    const offset_t column_vector = static_cast<offset_t>(column) * lanes + lane;
    const int64_t channel = static_cast<int64_t>(column_vector) * kL;
    const int64_t first_row = int64_t{part} * tiling_.rows;
    const int64_t left = shape_.s - first_row;
    const int rows = left < tiling_.rows ? static_cast<int>(left) : tiling_.rows;
    const int mine = group < groups && column_vector < row_vectors ? rows - group : 0;

    Factor factor[kL] = {};
    vectors([&](int u) { return u * groups < mine; },
            [&](int u) {
              const offset_t row = static_cast<offset_t>(first_row) + group + u * groups;
              return place(row * row_vectors + column_vector, row * shape_.c + channel,
                           shape_.c - channel);
            },
            [&] {
              wait();
              if (mine > 0) factors_from(channel, factor);
            },
            [&](int u, const typename Map::Loaded& loaded) {
              const offset_t row = static_cast<offset_t>(first_row) + group + u * groups;
              map_.template write<kAligned>(loaded,
                                            place(row * row_vectors + column_vector,
                                                  row * shape_.c + channel, shape_.c - channel),
                                            [&](int e) { return factor[e]; });
            });
  }

  SEBLOCK_DEVICE void factors_from(int64_t channel, Factor (&out)[kL]) const {
    if constexpr (kAligned) {
#pragma unroll
      for (int first = 0; first < kL; first += 4) {
        Factor four[4];
        map_.four_factors(channel + first, four);
#pragma unroll
        for (int e = 0; e < 4; ++e) out[first + e] = four[e];
      }
    } else {
#pragma unroll
      for (int e = 0; e < kL; ++e) {
        if (channel + e < shape_.c) out[e] = map_.factor(channel + e);
      }
    }
  }

  // A vector holds elements of one plane if planes are whole vectors, else of two. Planes smaller
  // than a vector, and samples that are not whole vectors: of any number.
  template <typename Wait>
  SEBLOCK_DEVICE void planes(int run, const Wait& wait) const {
    const int64_t total = shape_.c * shape_.s;
    const auto count = static_cast<offset_t>(ceil_div(total, kL));
    const offset_t first = static_cast<offset_t>(run) * kTaskVectors + thread_index();
    const auto inside = [&](int u) { return first + u * kBlockThreads < count; };
    const auto place_of = [&](int u) {
      const offset_t vector = first + u * kBlockThreads;
      return place(vector, int64_t{vector} * kL, total - int64_t{vector} * kL);
    };
    const auto s = static_cast<offset_t>(shape_.s);
    // The plane of a vector's first element, and how many of the vector's elements it has.
    struct Start {
      offset_t plane, left;
    };
    const auto start_of = [&](int u) {
      const offset_t start = (first + u * kBlockThreads) * kL, plane = plane_of(start);
      return Start{plane, (plane + 1) * s - start};
    };
    if constexpr (!kAligned) {
      vectors(inside, place_of, wait, [&](int u, const typename Map::Loaded& loaded) {
        Start start = start_of(u);
        Factor factor[kL];
#pragma unroll
        for (int e = 0; e < kL; ++e) {
          if (e == start.left && start.plane + 1 < shape_.c) ++start.plane, start.left += s;
          factor[e] = map_.factor(start.plane);
        }
        map_.template write<kAligned>(loaded, place_of(u), [&](int e) { return factor[e]; });
      });
    } else if (shape_.s % kL == 0) {
      vectors(inside, place_of, wait, [&](int u, const typename Map::Loaded& loaded) {
        const Factor factor = map_.factor(start_of(u).plane);
        map_.template write<kAligned>(loaded, place_of(u), [&](int) { return factor; });
      });
    } else {
      vectors(inside, place_of, wait, [&](int u, const typename Map::Loaded& loaded) {
        const Start start = start_of(u);
        const Factor one = map_.factor(start.plane);
        const Factor two = map_.factor(start.plane + 1 < shape_.c ? start.plane + 1 : start.plane);
        map_.template write<kAligned>(loaded, place_of(u),
                                      [&](int e) { return e < start.left ? one : two; });
      });
    }
  }
  SEBLOCK_DEVICE offset_t plane_of(offset_t element) const {
    if constexpr (kAligned) {
      return static_cast<offset_t>(tiling_.by_plane.divide(static_cast<uint32_t>(element)));
    } else {
      return static_cast<offset_t>(tiling_.by_plane_64.divide(static_cast<uint64_t>(element)));
    }
  }

  const Map& map_;
  const Shape& shape_;
  const Tiling& tiling_;
};

}  // namespace seblock::cuda
