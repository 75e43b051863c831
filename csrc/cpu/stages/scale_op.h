// What the scale makes of an element: the forward's y = x * gate, or with a residual
// y = tail(x * gate + residual); the backward's dx = dy * gate + shift, with shift = dpooled / S.
//
// A Factor holds what depends on the channel alone, a lane for each element. `get` reads a register
// full of a tensor at the place in question.
#pragma once

#include <array>
#include <cstdint>

#include "../vec/memory.h"

namespace seblock::cpu {
namespace {

// Which factor belongs to which lane.
template <typename acc_t>
using Index = std::array<int64_t, kLanes<acc_t>>;

template <typename acc_t>
SEBLOCK_INLINE Vec<acc_t> gather(const acc_t* values, const Index<acc_t>& index) {
  acc_t lanes[kLanes<acc_t>];
  for (int64_t j = 0; j < kLanes<acc_t>; ++j) lanes[j] = values[index[j]];
  return load<acc_t>(lanes);
}

// C values, written `times` times one after the other.
template <typename acc_t>
const acc_t* repeat(const acc_t* values, int64_t c, int64_t times, acc_t* room) {
  for (int64_t i = 0; i < c; ++i) room[i] = values[i];
  for (int64_t i = c; i < c * times; ++i) room[i] = room[i - c];
  return room;
}

template <typename scalar_type, typename acc_type>
struct TimesGate {
  using scalar_t = scalar_type;
  using acc_t = acc_type;
  using Factor = Vec<acc_t>;
  static constexpr int64_t kFactors = 1;
  static constexpr bool kMask = false;  // whether what a ReLU passes is to be remembered
  const scalar_t* x;                    // [N, C, S] or [N, S, C]
  const acc_t* gate;                    // [N, C]

  TimesGate repeated(int64_t i, int64_t c, int64_t times, acc_t* room) const {
    TimesGate out = *this;
    out.gate = repeat(gate + i, c, times, room);
    return out;
  }
  SEBLOCK_INLINE Factor one(int64_t i) const { return Factor::all(gate[i]); }
  SEBLOCK_INLINE Factor lanes(int64_t i) const { return load<acc_t>(gate + i); }
  SEBLOCK_INLINE Factor any(const Index<acc_t>& index) const { return gather(gate, index); }
  static SEBLOCK_INLINE Factor join(int64_t count, Factor a, Factor b) {
    return join_front(a, b, count);
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
  static constexpr bool kMask = kRelu;
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
  static constexpr bool kMask = false;
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
  SEBLOCK_INLINE Factor any(const Index<acc_t>& index) const {
    return {gather(gate, index), gather(shift, index)};
  }
  static SEBLOCK_INLINE Factor join(int64_t count, Factor a, Factor b) {
    return {join_front(a.gate, b.gate, count), join_front(a.shift, b.shift, count)};
  }
  template <typename Get>
  SEBLOCK_INLINE Vec<acc_t> value(const Get& get, Factor factor) const {
    return get(dy) * factor.gate + factor.shift;
  }
};

}  // namespace
}  // namespace seblock::cpu
