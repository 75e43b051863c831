// Integer division and sums across threads.
#pragma once

#include "activation.h"
#include "platform.cuh"

namespace seblock::cuda {

constexpr int kWarp = 32;

SEBLOCK_HOST_DEVICE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct DivMod {
  int64_t quotient;
  int64_t remainder;
};

// Division by a number known at launch, for any 64-bit value: one multiplication by 2^64 / divisor
// gives the quotient or one less. The hardware has no integer division: `/` on 64 bits is a
// subroutine call, which also makes the compiler spill registers around it.
class Divisor {
 public:
  explicit Divisor(int64_t divisor)
      : divisor_(static_cast<uint64_t>(divisor)), reciprocal_(~uint64_t{0} / divisor_) {}

  SEBLOCK_DEVICE DivMod divide(int64_t value) const {
    uint64_t quotient = multiply_high(static_cast<uint64_t>(value), reciprocal_);
    uint64_t remainder = static_cast<uint64_t>(value) - quotient * divisor_;
    if (remainder >= divisor_) {
      ++quotient;
      remainder -= divisor_;
    }
    return {static_cast<int64_t>(quotient), static_cast<int64_t>(remainder)};
  }
  SEBLOCK_DEVICE int64_t divisor() const { return static_cast<int64_t>(divisor_); }

 private:
  uint64_t divisor_;
  uint64_t reciprocal_;
};

// The same for values below 2^31; the quotient only.
class Divisor32 {
 public:
  explicit Divisor32(int64_t divisor)
      : divisor_(static_cast<uint32_t>(divisor)), reciprocal_(~uint32_t{0} / divisor_) {}

  SEBLOCK_DEVICE uint32_t divide(uint32_t value) const {
    const uint32_t quotient = multiply_high(value, reciprocal_);
    return value - quotient * divisor_ >= divisor_ ? quotient + 1 : quotient;
  }

 private:
  uint32_t divisor_;
  uint32_t reciprocal_;
};

// Sum over aligned groups of `lanes` neighbouring threads of a warp, lanes a power of two up to 32.
// Every thread of the warp must call; every thread of the group gets the sum.
template <typename T>
SEBLOCK_DEVICE T group_sum(T value, int lanes) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// Sum over the block. Every thread must call; thread 0 gets the sum. `scratch` holds one T per warp
// and may be reused after the next sync_threads().
template <typename T>
SEBLOCK_DEVICE T block_sum(T value, Shared<T> scratch) {
  value = group_sum(value, kWarp);
  if (thread_index() % kWarp == 0) scratch[thread_index() / kWarp] = value;
  sync_threads();
  T sum = 0;
  if (thread_index() == 0) {
    for (int warp = 0; warp < kBlockThreads / kWarp; ++warp) sum += scratch[warp];
  }
  return sum;
}

}  // namespace seblock::cuda
