// Vec<acc_t>: one register of acc_t, as wide as the instruction set that this file is compiled for.
//
// Everything under cpu/ that is compiled several times lives in an unnamed namespace and is forced
// inline: were one copy emitted as a shared symbol, the linker could pick the AVX-512 one for
// everybody.
#pragma once

#include <cstdint>
#include <utility>

#define SEBLOCK_INLINE inline __attribute__((always_inline))
#define SEBLOCK_LAMBDA __attribute__((always_inline))

namespace seblock::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64;
constexpr int kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kRegisterBytes = 32;
constexpr int kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kRegisterBytes = 16;
constexpr int kRegisters = 32;
#else
constexpr int kRegisterBytes = 16;
constexpr int kRegisters = 16;
#endif

template <typename acc_t>
constexpr int kLanes = kRegisterBytes / int(sizeof(acc_t));

template <typename T, int kCount>
struct RawVec {
  typedef T Type __attribute__((vector_size(kCount * sizeof(T))));
};

// The integer of the same width: masks and bits of acc_t.
template <typename acc_t>
struct BitsOf;
template <>
struct BitsOf<float> {
  using Type = int32_t;
};
template <>
struct BitsOf<double> {
  using Type = int64_t;
};

template <typename acc_t>
struct Vec {
  using Raw = typename RawVec<acc_t, kLanes<acc_t>>::Type;
  using Bits = typename RawVec<typename BitsOf<acc_t>::Type, kLanes<acc_t>>::Type;

  Raw raw;

  static SEBLOCK_INLINE Vec zero() { return {Raw{}}; }
  static SEBLOCK_INLINE Vec all(acc_t value) { return {value - Raw{}}; }  // x - 0 keeps -0 and NaN

  friend SEBLOCK_INLINE Vec operator+(Vec a, Vec b) { return {a.raw + b.raw}; }
  friend SEBLOCK_INLINE Vec operator-(Vec a, Vec b) { return {a.raw - b.raw}; }
  friend SEBLOCK_INLINE Vec operator*(Vec a, Vec b) { return {a.raw * b.raw}; }
  friend SEBLOCK_INLINE Vec operator/(Vec a, Vec b) { return {a.raw / b.raw}; }
};

template <typename acc_t>
SEBLOCK_INLINE Vec<acc_t> relu(Vec<acc_t> v) {
  return {v.raw <= 0 ? typename Vec<acc_t>::Raw{} : v.raw};  // passes NaN
}

// All ones in the first `count` lanes.
template <typename acc_t>
SEBLOCK_INLINE typename Vec<acc_t>::Bits front_lanes(int64_t count) {
  typename Vec<acc_t>::Bits lane;
  for (int i = 0; i < kLanes<acc_t>; ++i) lane[i] = i;
  return lane < typename BitsOf<acc_t>::Type(count);
}

// The first `count` lanes; the others become 0, whatever they held (a NaN too).
template <typename acc_t>
SEBLOCK_INLINE Vec<acc_t> keep_front(Vec<acc_t> v, int64_t count) {
  using V = Vec<acc_t>;
  return {(typename V::Raw)((typename V::Bits)v.raw & front_lanes<acc_t>(count))};
}

// All but the first `count` lanes; those become 0.
template <typename acc_t>
SEBLOCK_INLINE Vec<acc_t> keep_back(Vec<acc_t> v, int64_t count) {
  using V = Vec<acc_t>;
  return {(typename V::Raw)((typename V::Bits)v.raw & ~front_lanes<acc_t>(count))};
}

// The first `count` lanes of a, the others of b.
template <typename acc_t>
SEBLOCK_INLINE Vec<acc_t> join_front(Vec<acc_t> a, Vec<acc_t> b, int64_t count) {
  return {front_lanes<acc_t>(count) ? a.raw : b.raw};
}

// Lane i is a's where bit kStep of i is clear and b's where it is set; `kCross` takes lane i ^
// kStep.
template <int kStep, bool kCross, typename acc_t, int... kLane>
SEBLOCK_INLINE Vec<acc_t> pick(Vec<acc_t> a, Vec<acc_t> b, std::integer_sequence<int, kLane...>) {
  constexpr int flip = kCross ? kStep : 0;
#if defined(__clang__) || __GNUC__ >= 12
  return {__builtin_shufflevector(a.raw, b.raw,
                                  ((kLane ^ flip) + (kLane & kStep ? kLanes<acc_t> : 0))...)};
#else
  const typename Vec<acc_t>::Bits index = {
      ((kLane ^ flip) + (kLane & kStep ? kLanes<acc_t> : 0))...};
  return {__builtin_shuffle(a.raw, b.raw, index)};
#endif
}

template <int kStep, typename acc_t>
SEBLOCK_INLINE void reduce_step(Vec<acc_t> (&v)[kLanes<acc_t>]) {
  using Lanes = std::make_integer_sequence<int, kLanes<acc_t>>;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<acc_t>; i += 2 * kStep) {
    v[i] = pick<kStep, false>(v[i], v[i + kStep], Lanes{}) +
           pick<kStep, true>(v[i], v[i + kStep], Lanes{});
  }
  if constexpr (2 * kStep < kLanes<acc_t>) reduce_step<2 * kStep>(v);
}

// Lane i of the result is the sum of the lanes of v[i]: a register full of sums at once, at about
// three instructions a sum. The order of the additions is the same for every i. Destroys v.
template <typename acc_t>
SEBLOCK_INLINE Vec<acc_t> reduce_lanes(Vec<acc_t> (&v)[kLanes<acc_t>]) {
  reduce_step<1>(v);
  return v[0];
}

}  // namespace
}  // namespace seblock::cpu
