// The storage formats and their conversions, on whole vectors. Narrowing rounds to nearest even;
// NaN stays NaN, float16 overflows to infinity, subnormals are right.
#pragma once

#include "vec.h"
#ifdef __F16C__
#include <immintrin.h>
#endif

namespace seblock::cpu {
namespace {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

using FloatRaw = RawVec<float, kLanes<float>>::Type;
using UintRaw = RawVec<uint32_t, kLanes<float>>::Type;
using IntRaw = RawVec<int32_t, kLanes<float>>::Type;
using ShortRaw = RawVec<uint16_t, kLanes<float>>::Type;

// Where `mask` (all ones or all zeros in a lane) is set, a; elsewhere b.
SEBLOCK_INLINE UintRaw select(IntRaw mask, UintRaw a, UintRaw b) {
  return ((UintRaw)mask & a) | (~(UintRaw)mask & b);
}

// Format<scalar_t>: what an element is in memory, and the way to and from a vector of acc_t.
template <typename scalar_t>
struct Format {
  using Element = scalar_t;

  template <typename Raw, typename Stored>
  static SEBLOCK_INLINE Raw widen(Stored stored) {
    return __builtin_convertvector(stored, Raw);
  }
  template <typename Stored, typename Raw>
  static SEBLOCK_INLINE Stored narrow(Raw value) {
    return __builtin_convertvector(value, Stored);
  }
};

template <>
struct Format<bfloat16> {
  using Element = uint16_t;

  template <typename Raw>
  static SEBLOCK_INLINE Raw widen(ShortRaw stored) {
    return (Raw)(__builtin_convertvector(stored, UintRaw) << 16);
  }
  template <typename Stored>
  static SEBLOCK_INLINE Stored narrow(FloatRaw value) {
    const UintRaw bits = (UintRaw)value;
    const UintRaw rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return __builtin_convertvector(select(value != value, UintRaw{} + 0x7fc0, rounded), Stored);
  }
};

template <>
struct Format<float16> {
  using Element = uint16_t;

#if defined(__AVX512F__)
  // The masked forms with a full mask: GCC warns about its own header in the plain ones (PR
  // 105593).
  template <typename Raw>
  static SEBLOCK_INLINE Raw widen(ShortRaw stored) {
    return (Raw)_mm512_maskz_cvtph_ps(0xffff, (__m256i)stored);
  }
  template <typename Stored>
  static SEBLOCK_INLINE Stored narrow(FloatRaw value) {
    return (Stored)_mm512_maskz_cvtps_ph(0xffff, (__m512)value, _MM_FROUND_TO_NEAREST_INT);
  }
#elif defined(__F16C__)
  template <typename Raw>
  static SEBLOCK_INLINE Raw widen(ShortRaw stored) {
    return (Raw)_mm256_cvtph_ps((__m128i)stored);
  }
  template <typename Stored>
  static SEBLOCK_INLINE Stored narrow(FloatRaw value) {
    return (Stored)_mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT);
  }
#else
  // Exponent and mantissa move into place; the multiplication by 2^112 rebiases the exponent, and
  // makes subnormals normal on the way.
  template <typename Raw>
  static SEBLOCK_INLINE Raw widen(ShortRaw stored) {
    const UintRaw bits = __builtin_convertvector(stored, UintRaw);
    const UintRaw magnitude = (bits & 0x7fff) << 13;
    const UintRaw rebiased = (UintRaw)((FloatRaw)magnitude * 0x1p112f);
    const IntRaw special = (IntRaw)magnitude >= 0x0f800000;  // infinity or NaN
    return (Raw)(select(special, magnitude | 0x7f800000, rebiased) | (bits & 0x8000) << 16);
  }
  // After F. Giesen's float_to_half_fast3_rtne: a float addition rounds subnormal results, an
  // integer addition normal ones; the latter also carries 65520 and above into infinity.
  template <typename Stored>
  static SEBLOCK_INLINE Stored narrow(FloatRaw value) {
    const UintRaw bits = (UintRaw)value;
    const UintRaw magnitude = bits & 0x7fffffff;
    const UintRaw magic = UintRaw{} + 0x3f000000;  // 0.5f, whose last bit weighs 2^-24
    const UintRaw subnormal = (UintRaw)((FloatRaw)magnitude + (FloatRaw)magic) - magic;
    const UintRaw normal = (magnitude + 0xc8000fff + ((magnitude >> 13) & 1)) >> 13;
    UintRaw half = select((IntRaw)magnitude < 0x38800000, subnormal, normal);
    half = select((IntRaw)magnitude >= 0x47800000, UintRaw{} + 0x7c00, half);
    half = select(value != value, UintRaw{} + 0x7e00, half);
    return __builtin_convertvector(half | (bits & 0x80000000) >> 16, Stored);
  }
#endif
};

}  // namespace
}  // namespace seblock::cpu
