// Between a mask of lanes (all ones or all zeros in each) and an integer with a bit per lane.
#pragma once

#include "vec.h"
#ifdef __SSE2__
#include <immintrin.h>
#endif

namespace seblock::cpu {
namespace {

// Bit i is set where lane i is.
template <typename acc_t>
SEBLOCK_INLINE unsigned lane_bits(typename Vec<acc_t>::Bits lanes) {
  [[maybe_unused]] constexpr bool single = sizeof(acc_t) == sizeof(float);
#if defined(__AVX512F__)
  if constexpr (single) return _mm512_movepi32_mask((__m512i)lanes);
  return _mm512_movepi64_mask((__m512i)lanes);
#elif defined(__AVX2__)
  if constexpr (single) return unsigned(_mm256_movemask_ps((__m256)lanes));
  return unsigned(_mm256_movemask_pd((__m256d)lanes));
#elif defined(__SSE2__)
  if constexpr (single) return unsigned(_mm_movemask_ps((__m128)lanes));
  return unsigned(_mm_movemask_pd((__m128d)lanes));
#else
  unsigned bits = 0;
  for (int i = 0; i < kLanes<acc_t>; ++i) bits |= unsigned(lanes[i] & 1) << i;
  return bits;
#endif
}

// The lanes whose bit is set.
template <typename acc_t>
SEBLOCK_INLINE typename Vec<acc_t>::Bits lanes_of(unsigned bits) {
  using Bits = typename Vec<acc_t>::Bits;
  Bits bit;
  for (int i = 0; i < kLanes<acc_t>; ++i) bit[i] = typename BitsOf<acc_t>::Type(1) << i;
  return ((Bits{} + typename BitsOf<acc_t>::Type(bits)) & bit) != 0;
}

}  // namespace
}  // namespace seblock::cpu
