// Global memory access: every load and store of a tensor goes through here.
// Vec<scalar_t, kVec> is kVec neighbouring elements moved in one access (16 bytes at the widest).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "platform.cuh"

namespace seblock::cuda {

template <typename scalar_t, int kVec>
struct alignas(sizeof(scalar_t) * kVec) Vec {
  static_assert(sizeof(scalar_t) * kVec <= kAccessBytes, "wider than the widest access");
  scalar_t value[kVec];
};

// What sums over scalar_t are held in.
template <typename scalar_t>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <typename scalar_t>
using acc_of = typename Accumulate<scalar_t>::type;

template <typename acc_t, typename scalar_t, int kVec>
SEBLOCK_DEVICE void load(const scalar_t* address, acc_t (&out)[kVec]) {
  const auto* from = reinterpret_cast<const Vec<scalar_t, kVec>*>(address);
  before_load(from);
  const auto vec = *from;
#pragma unroll
  for (int e = 0; e < kVec; ++e) out[e] = static_cast<acc_t>(vec.value[e]);
}

template <typename acc_t, typename scalar_t>
SEBLOCK_DEVICE acc_t load(const scalar_t* address) {
  before_load(address);
  return static_cast<acc_t>(*address);
}

template <typename scalar_t, typename acc_t, int kVec>
SEBLOCK_DEVICE void store(scalar_t* address, const acc_t (&in)[kVec]) {
  Vec<scalar_t, kVec> vec;
#pragma unroll
  for (int e = 0; e < kVec; ++e) vec.value[e] = static_cast<scalar_t>(in[e]);
  auto* to = reinterpret_cast<Vec<scalar_t, kVec>*>(address);
  before_store(to);
  *to = vec;
}

template <typename scalar_t, typename acc_t>
SEBLOCK_DEVICE void store(scalar_t* address, acc_t value) {
  before_store(address);
  *address = static_cast<scalar_t>(value);
}

}  // namespace seblock::cuda
