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

// Bits for elements [begin, end), of which `y` are the values as stored. Bytes that the range
// shares with a neighbour must be 0 before, and may be written by several threads.
template <typename acc_t, typename scalar_t>
void write_mask(const scalar_t* y, int64_t begin, int64_t end, uint8_t* mask) {
  using Step = MaskStep<scalar_t, acc_t>;
  constexpr int64_t K = kLanes<acc_t>;
  const auto one = [&](int64_t i) {
    const unsigned passes = !(load_one<acc_t>(y + i - begin) <= 0);
    const uint8_t bit = uint8_t(passes << (i % Step::kPerByte));
    __atomic_fetch_or(mask + i / Step::kPerByte, bit, __ATOMIC_RELAXED);
  };
  int64_t i = begin;
  for (; i < end && i % Step::kPerByte != 0; ++i) one(i);
  for (; i + Step::kElements <= end; i += Step::kElements) {
    unsigned bits = 0;
    for (int64_t k = 0; k < Step::kElements; k += K) {
      const Vec<acc_t> value = load<acc_t>(y + i - begin + k);
      bits |= lane_bits<acc_t>(~(value.raw <= 0)) << k;
    }
    for (int64_t b = 0; b < Step::kBytes; ++b) {
      constexpr unsigned byte = (1u << Step::kPerByte) - 1;
      mask[i / Step::kPerByte + b] = uint8_t(bits >> (b * Step::kPerByte) & byte);
    }
  }
  for (; i < end; ++i) one(i);
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
