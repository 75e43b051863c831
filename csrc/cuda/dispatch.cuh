// From run-time values to compile-time types: the only place where it happens.
#pragma once

#include <stdexcept>
#include <type_traits>

#include "device/vec.cuh"
#include "plan.h"

namespace seblock::cuda {

template <typename T>
struct Type {
  using type = T;
};

// Calls f(Type<scalar_t>) for the storage type of x.
template <typename F>
void dispatch_input(DType dtype, F&& f) {
  switch (dtype) {
    case DType::float32:
      return f(Type<float>{});
    case DType::bfloat16:
      return f(Type<__nv_bfloat16>{});
    case DType::float16:
      return f(Type<__half>{});
    case DType::float64:
      return f(Type<double>{});
  }
  throw std::runtime_error("dispatch_input: unknown dtype");
}

// The same without float64, for the kernels whose sums are float32.
template <typename F>
void dispatch_narrow(DType dtype, F&& f) {
  switch (dtype) {
    case DType::float32:
      return f(Type<float>{});
    case DType::bfloat16:
      return f(Type<__nv_bfloat16>{});
    case DType::float16:
      return f(Type<__half>{});
    default:
      throw std::runtime_error(
          "dispatch_narrow: the plan's strategy has no kernels for this dtype");
  }
}

// Calls f(Type<weight_t>, Type<acc_t>): products never see the type of x, only that of the sums.
template <typename F>
void dispatch_weight(DType dtype, DType weight_dtype, F&& f) {
  if (weight_dtype == DType::float32) {
    return dtype == DType::float64 ? f(Type<float>{}, Type<double>{})
                                   : f(Type<float>{}, Type<float>{});
  }
  if (weight_dtype != dtype)
    throw std::runtime_error("dispatch_weight: weights are neither x's dtype nor float32");
  dispatch_input(weight_dtype, [&](auto weight) {
    using weight_t = typename decltype(weight)::type;
    if constexpr (!std::is_same_v<weight_t, float>) f(weight, Type<acc_of<weight_t>>{});
  });
}

}  // namespace seblock::cuda
