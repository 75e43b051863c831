// What strategy S's squeeze sums: x in the forward pass, dy * x in the backward pass.
#pragma once

#include "device/vec.cuh"

namespace seblock::cuda {

template <typename scalar>
struct Input {
  using scalar_t = scalar;
  using acc_t = acc_of<scalar>;
  static constexpr const char* kName = "squeeze(x)";
  const scalar_t* x;  // [N, C, S] or [N, S, C]

  template <int kVec>
  SEBLOCK_DEVICE void load_at(int64_t i, bool, acc_t (&out)[kVec]) const {
    load(x + i, out);
  }
};

template <typename scalar>
struct InputTimesGradient {
  using scalar_t = scalar;
  using acc_t = acc_of<scalar>;
  static constexpr const char* kName = "squeeze(dy * x)";
  const scalar_t* x;    // [N, C, S] or [N, S, C]
  const scalar_t* dy;   // like x
  const uint8_t* mask;  // where dy passes the tail's ReLU, or null
  scalar_t* dresidual;  // like x: dy where it passes, 0 elsewhere; with a mask

  // `owner`: of the threads that load these elements, the one that writes dresidual.
  template <int kVec>
  SEBLOCK_DEVICE void load_at(int64_t i, bool owner, acc_t (&out)[kVec]) const {
    constexpr int kBits = kAccessBytes / static_cast<int>(sizeof(scalar_t));
    acc_t gradient[kVec];
    load(x + i, out);
    load(dy + i, gradient);
    if (mask) {
      const unsigned bits = load<unsigned>(mask + i / kBits) >> i % kBits;
#pragma unroll
      for (int e = 0; e < kVec; ++e) gradient[e] = bits >> e & 1 ? gradient[e] : acc_t(0);
      if (owner) store(dresidual + i, gradient);
    }
#pragma unroll
    for (int e = 0; e < kVec; ++e) out[e] *= gradient[e];
  }
};

}  // namespace seblock::cuda
