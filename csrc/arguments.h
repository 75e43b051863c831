// What the operators accept, checked cheaply and refused with one short line. Part of ops.cpp, sees
// torch.
#pragma once

#include "se_types.h"
#include "tensors.h"

namespace seblock {
namespace {

Shape check_input(const Tensor& x) {
  require(x.dim() >= 3 && x.dim() <= kMaxDims,
          "input must be [N, C, *spatial] with 1 to 3 spatial dimensions");
  Shape shape{x.size(0), x.size(1), 1, 0};
  for (int64_t dim = 2; dim < x.dim(); ++dim) shape.s *= x.size(dim);
  require(shape.c > 0 && shape.s > 0, "input must have channels and no empty spatial dimension");
  return shape;
}

void check_parameter(const Tensor& parameter, int64_t height, int64_t width, const Tensor& x) {
  const bool bias = width == 0;
  require((bias ? parameter.dim() == 1 : parameter.dim() >= 2) && parameter.size(0) == height &&
              (bias || parameter.size(1) == width) &&
              parameter.numel() == height * (bias ? 1 : width),
          "weights must be [R, C] and [C, R], biases [R] and [C]");
  require(parameter.device() == x.device(), "all tensors must be on one device");
  const DType dtype = dtype_of(parameter);
  require(dtype == DType::float32 || dtype == dtype_of(x),
          "weights must be float32 or of input's dtype");
}

// The parameters as the kernels read them: dense, and all of one dtype (mixed ones in that of the
// sums).
class Parameters {
 public:
  Parameters(const Tensor& x, Shape& shape, const Tensor& reduce, const Tensor& expand,
             const OptionalTensor& reduce_bias = {}, const OptionalTensor& expand_bias = {}) {
    require(reduce.dim() >= 2 && reduce.size(0) > 0,
            "reduce_weight must be [R, C] with R at least 1");
    shape.r = reduce.size(0);
    check_parameter(reduce, shape.r, shape.c, x);
    check_parameter(expand, shape.c, shape.r, x);
    if (reduce_bias) check_parameter(*reduce_bias, shape.r, 0, x);
    if (expand_bias) check_parameter(*expand_bias, shape.c, 0, x);

    dtype_ = dtype_of(reduce);
    for (const Tensor* other :
         {&expand, reduce_bias ? &*reduce_bias : nullptr, expand_bias ? &*expand_bias : nullptr}) {
      if (other && dtype_of(*other) != dtype_) dtype_ = acc_dtype_of(dtype_of(x));
    }
    reduce_ = dense(reduce);
    expand_ = dense(expand);
    if (reduce_bias) reduce_bias_ = dense(*reduce_bias);
    if (expand_bias) expand_bias_ = dense(*expand_bias);
  }

  DType dtype() const { return dtype_; }
  Weights weights() const {
    return {reduce_.const_data_ptr(), expand_.const_data_ptr(),
            reduce_bias_ ? reduce_bias_->const_data_ptr() : nullptr,
            expand_bias_ ? expand_bias_->const_data_ptr() : nullptr};
  }
  Tensor empty_like_reduce() const { return empty_like(reduce_, dtype_); }
  Tensor empty_like_expand() const { return empty_like(expand_, dtype_); }

 private:
  Tensor dense(const Tensor& parameter) const {
    const Tensor cast = dtype_of(parameter) == dtype_
                            ? parameter
                            : torch::stable::to(parameter, scalar_type_of(dtype_));
    return cast.is_contiguous() ? cast : torch::stable::contiguous(cast);
  }

  DType dtype_;
  Tensor reduce_;  // [R, C, 1...]
  Tensor expand_;  // [C, R, 1...]
  OptionalTensor reduce_bias_;
  OptionalTensor expand_bias_;
};

Activation activation_of(int64_t code) {
  require(code >= 0 && code <= static_cast<int64_t>(Activation::identity), "unknown activation");
  return static_cast<Activation>(code);
}

Gate gate_of(int64_t code) {
  require(code >= 0 && code <= static_cast<int64_t>(Gate::relu), "unknown gate");
  return static_cast<Gate>(code);
}

Tail tail_of(int64_t code) {
  require(code >= 0 && code <= static_cast<int64_t>(Tail::add_relu), "unknown tail");
  return static_cast<Tail>(code);
}

void check_like(const Tensor& x, const Tensor& tensor, const char* message) {
  bool alike =
      tensor.dim() == x.dim() && tensor.device() == x.device() && dtype_of(tensor) == dtype_of(x);
  for (int64_t dim = 0; alike && dim < x.dim(); ++dim) alike = tensor.size(dim) == x.size(dim);
  require(alike, message);
}

void check_saved(const Tensor& tensor, int64_t width, const Shape& shape, const Tensor& x) {
  require(tensor.numel() == shape.n * width && tensor.is_contiguous() &&
              tensor.device() == x.device() && dtype_of(tensor) == acc_dtype_of(dtype_of(x)),
          "pooled, z1 and gate must be what se_forward returned");
}

void check_mask(const OptionalTensor& mask, const Problem& problem, const Tensor& x) {
  require(mask.has_value() == (problem.tail == Tail::add_relu) &&
              (!mask ||
               (mask->scalar_type() == ScalarType::Byte && mask->numel() == mask_bytes(problem) &&
                mask->is_contiguous() && mask->device() == x.device())),
          "mask must be what se_forward returned");
}

}  // namespace
}  // namespace seblock
