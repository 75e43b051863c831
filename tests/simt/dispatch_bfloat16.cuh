// Stands in for csrc/cuda/dispatch.cuh where kernels are compiled to be broken: x in bfloat16,
// weights in float32, which compiles in a quarter of the time.
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

template <typename F>
void dispatch_input(DType dtype, F&& f) {
  if (dtype != DType::bfloat16) throw std::runtime_error("only bfloat16 is compiled");
  f(Type<__nv_bfloat16>{});
}

template <typename F>
void dispatch_narrow(DType dtype, F&& f) {
  dispatch_input(dtype, f);
}

template <typename F>
void dispatch_weight(DType, DType weight_dtype, F&& f) {
  if (weight_dtype != DType::float32) throw std::runtime_error("only float32 is compiled");
  f(Type<float>{}, Type<float>{});
}

}  // namespace seblock::cuda
