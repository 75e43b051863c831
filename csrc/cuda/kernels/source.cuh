// What a squeeze sums: x in the forward pass, dy * x in the backward pass.
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
  SEBLOCK_DEVICE void load_at(int64_t i, acc_t (&out)[kVec]) const {
    load(x + i, out);
  }
};

template <typename scalar>
struct InputTimesGradient {
  using scalar_t = scalar;
  using acc_t = acc_of<scalar>;
  static constexpr const char* kName = "squeeze(dy * x)";
  const scalar_t* x;   // [N, C, S] or [N, S, C]
  const scalar_t* dy;  // like x

  template <int kVec>
  SEBLOCK_DEVICE void load_at(int64_t i, acc_t (&out)[kVec]) const {
    acc_t gradient[kVec];
    load(x + i, out);
    load(dy + i, gradient);
#pragma unroll
    for (int e = 0; e < kVec; ++e) out[e] *= gradient[e];
  }
};

}  // namespace seblock::cuda
