// The logistic function on a vector of float: activation.h's formula, with an exponential that has
// no branches.
#pragma once

#include "half.h"
#include "vec.h"

namespace seblock::cpu {
namespace {

// 2^n for -126 <= n <= 127.
SEBLOCK_INLINE FloatRaw power_of_two(IntRaw n) { return (FloatRaw)((n + 127) << 23); }

// e^x within 2 units in the last place. Overflows to infinity, underflows to 0, passes NaN on.
SEBLOCK_INLINE FloatRaw exp(FloatRaw x) {
  x = x > 104.0f ? FloatRaw{} + 104.0f : x;  // e^104 and e^-104 are already infinity and 0
  x = x < -104.0f ? FloatRaw{} - 104.0f : x;

  // x = n ln 2 + r, |r| <= ln 2 / 2. Adding 1.5 * 2^23 rounds to the nearest integer, which then
  // stands in the low bits. ln 2 is in two pieces, so that n ln 2 is exact enough.
  const FloatRaw magic = FloatRaw{} + 12582912.0f;
  const FloatRaw shifted = x * 1.44269504088896341f + magic;
  const FloatRaw n = shifted - magic;
  const FloatRaw r = (x - n * 0.693359375f) - n * -2.12194440e-4f;

  // The Cephes library's polynomial (S. Moshier, expf).
  FloatRaw p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;

  // 2^n in two factors: n reaches 150, beyond what one float can hold.
  const IntRaw power = (IntRaw)shifted - (IntRaw)magic;
  const IntRaw half = power >> 1;
  return p * power_of_two(half) * power_of_two(power - half);
}

SEBLOCK_INLINE Vec<float> sigmoid(Vec<float> z) { return {1.0f / (1.0f + exp(-z.raw))}; }

}  // namespace
}  // namespace seblock::cpu
