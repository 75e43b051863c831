// Runtime dtypes -> compile-time types, the only place.
#pragma once

#include "../vec/half.h"
#include "se_types.h"

namespace seblock::cpu {
namespace {

template <typename T>
struct Tag {
  using Type = T;
};

// body(Tag<scalar_t>, Tag<weight_t>, Tag<acc_t>)
template <typename Body>
void dispatch(const Problem& problem, const Body& body) {
  const bool float_weights = problem.weight_dtype == DType::float32;
  switch (problem.dtype) {
    case DType::float32:
      return body(Tag<float>{}, Tag<float>{}, Tag<float>{});
    case DType::bfloat16:
      if (float_weights) return body(Tag<bfloat16>{}, Tag<float>{}, Tag<float>{});
      return body(Tag<bfloat16>{}, Tag<bfloat16>{}, Tag<float>{});
    case DType::float16:
      if (float_weights) return body(Tag<float16>{}, Tag<float>{}, Tag<float>{});
      return body(Tag<float16>{}, Tag<float16>{}, Tag<float>{});
    case DType::float64:
      if (float_weights) return body(Tag<double>{}, Tag<float>{}, Tag<double>{});
      return body(Tag<double>{}, Tag<double>{}, Tag<double>{});
  }
}

}  // namespace
}  // namespace seblock::cpu
