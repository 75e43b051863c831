// Division by numbers known before a launch, on the host or the device.
//
// A GPU has no integer division: `/` on 64 bits is a subroutine call, which also makes the compiler
// spill registers around it. One multiplication by 2^bits / divisor gives the quotient or one less.
#pragma once

#include <cstdint>

#include "se_types.h"

namespace seblock {

SEBLOCK_HOST_DEVICE uint32_t multiply_high(uint32_t a, uint32_t b) {
#ifdef __CUDA_ARCH__
  return __umulhi(a, b);
#else
  return static_cast<uint32_t>(uint64_t{a} * b >> 32);
#endif
}

SEBLOCK_HOST_DEVICE uint64_t multiply_high(uint64_t a, uint64_t b) {
#ifdef __CUDA_ARCH__
  return __umul64hi(a, b);
#else
  __extension__ using uint128 = unsigned __int128;
  return static_cast<uint64_t>(static_cast<uint128>(a) * b >> 64);
#endif
}

// Any value from 0 on that `word` holds, but of 32 bits those below 2^31.
template <typename word>
class Divisor {
 public:
  Divisor(int64_t divisor = 1)
      : divisor_(static_cast<word>(divisor)), reciprocal_(static_cast<word>(~word{0}) / divisor_) {}

  SEBLOCK_HOST_DEVICE word divide(word value) const {
    const word quotient = multiply_high(value, reciprocal_);
    return value - quotient * divisor_ >= divisor_ ? quotient + 1 : quotient;
  }

 private:
  word divisor_;
  word reciprocal_;
};

using Divisor32 = Divisor<uint32_t>;
using Divisor64 = Divisor<uint64_t>;

}  // namespace seblock
