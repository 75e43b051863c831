// The mask of a ReLU tail: a bit per element, where dy passes. Its layout is in se_types.h.
#pragma once

#include "../vec/lane_bits.h"
#include "../vec/memory.h"
#include "threads.h"

namespace seblock::cpu {
namespace {

// Elements that one step of the loops below takes: whole registers and whole bytes of the mask.
template <typename scalar_t, typename acc_t>
struct MaskStep {
  static constexpr int64_t kPerByte = 16 / int64_t(sizeof(scalar_t));
  static constexpr int64_t kElements = kLanes<acc_t> > kPerByte ? int64_t(kLanes<acc_t>) : kPerByte;
  static constexpr int64_t kBytes = kElements / kPerByte;
};

// Bits for the `count` elements from i on, the first lanes of `value` before they are rounded for
// storage. The mask is 0 before; a byte may be shared with another thread.
template <typename scalar_t, typename acc_t>
SEBLOCK_INLINE void write_mask(Vec<acc_t> value, int64_t i, int64_t count, uint8_t* mask) {
  constexpr int64_t K = kLanes<acc_t>;
  constexpr int64_t kPerByte = MaskStep<scalar_t, acc_t>::kPerByte;
  scalar_t elements[K];
  store(elements, value);
  const Vec<acc_t> y = load<acc_t>(elements);
  const unsigned bits = lane_bits<acc_t>(~(y.raw <= 0)) & ((1u << count) - 1);
  uint8_t* const first = mask + i / kPerByte;
  const int64_t shift = i % kPerByte;
  if (K % kPerByte == 0 && count == K && shift == 0) {
    for (int64_t b = 0; b < K / kPerByte; ++b)
      first[b] = uint8_t(bits >> (b * kPerByte) & ((1u << kPerByte) - 1));
    return;
  }
  for (int64_t b = 0; b * kPerByte < shift + count; ++b) {
    const uint8_t byte =
        uint8_t((uint64_t(bits) << shift) >> (b * kPerByte) & ((1u << kPerByte) - 1));
    __atomic_fetch_or(first + b, byte, __ATOMIC_RELAXED);
  }
}

// masked = dy where the mask has a bit, else 0, for elements [begin, end).
template <typename acc_t, typename scalar_t>
void apply_mask(const scalar_t* dy, const uint8_t* mask, int64_t begin, int64_t end,
                scalar_t* masked) {
  using Step = MaskStep<scalar_t, acc_t>;
  using V = Vec<acc_t>;
  constexpr int64_t K = kLanes<acc_t>;
  const auto one = [&](int64_t i) {
    const bool passes = mask[i / Step::kPerByte] >> (i % Step::kPerByte) & 1;
    masked[i] = passes ? dy[i] : scalar_t{};
  };
  int64_t i = begin;
  for (; i < end && i % Step::kPerByte != 0; ++i) one(i);
  for (; i + Step::kElements <= end; i += Step::kElements) {
    unsigned bits = 0;
    for (int64_t b = 0; b < Step::kBytes; ++b) {
      bits |= unsigned(mask[i / Step::kPerByte + b]) << (b * Step::kPerByte);
    }
    for (int64_t k = 0; k < Step::kElements; k += K) {
      const auto passes = lanes_of<acc_t>(bits >> k);
      const auto kept = (typename V::Bits)load<acc_t>(dy + i + k).raw & passes;
      store(masked + i + k, V{(typename V::Raw)kept});
    }
  }
  for (; i < end; ++i) one(i);
}

}  // namespace
}  // namespace seblock::cpu
