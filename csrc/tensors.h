// Tensors as the operators need them: dtypes, allocation, layout. Part of ops.cpp, sees torch.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <optional>
#include <stdexcept>
#include <string>

#include "se_types.h"

namespace seblock {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

void require(bool condition, const char* message) {
  if (!condition) throw std::runtime_error(std::string("seblock_cuda: ") + message);
}

// ---- dtypes ----

DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::float32;
    case ScalarType::BFloat16:
      return DType::bfloat16;
    case ScalarType::Half:
      return DType::float16;
    case ScalarType::Double:
      return DType::float64;
    default:
      throw std::runtime_error(
          "seblock_cuda: tensors must be float32, bfloat16, float16 or float64");
  }
}

ScalarType scalar_type_of(DType dtype) {
  constexpr std::array types{ScalarType::Float, ScalarType::BFloat16, ScalarType::Half,
                             ScalarType::Double};
  return types[static_cast<size_t>(dtype)];
}

int32_t torch_dtype_of(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return aoti_torch_dtype_float32();
    case DType::bfloat16:
      return aoti_torch_dtype_bfloat16();
    case DType::float16:
      return aoti_torch_dtype_float16();
    default:
      return aoti_torch_dtype_float64();
  }
}

DType acc_dtype_of(DType dtype) {
  return dtype == DType::float64 ? DType::float64 : DType::float32;
}

// ---- allocation and layout ----

int64_t bytes_of(int64_t dims, const int64_t* sizes, int32_t torch_dtype) {
  int64_t bytes = aoti_torch_dtype_element_size(torch_dtype);
  for (int64_t dim = 0; dim < dims; ++dim) bytes *= sizes[dim];
  return bytes;
}

// Straight to the allocator: a call through the dispatcher costs several times as much, and small
// layers are bound by the host.
Tensor empty(int64_t dims, const int64_t* sizes, const int64_t* strides, int32_t torch_dtype,
             const Tensor& like) {
  const auto device = like.device();
  AtenTensorHandle handle = nullptr;
  if (aoti_torch_empty_strided(dims, sizes, strides, torch_dtype,
                               static_cast<int32_t>(device.type()), device.index(), &handle))
    throw std::runtime_error(std::string("seblock_cuda: ") + (like.is_cpu() ? "CPU" : "CUDA") +
                             " out of memory. Could not allocate " +
                             std::to_string(bytes_of(dims, sizes, torch_dtype)) +
                             " bytes");  // seblock_cuda/_ops.py reads this
  return Tensor(handle);
}

Tensor empty_like(const Tensor& like, DType dtype) {  // of a tensor without gaps
  return empty(like.dim(), like.sizes().data(), like.strides().data(), torch_dtype_of(dtype), like);
}

Tensor empty_vector(int64_t length, DType dtype, const Tensor& like) {
  const int64_t stride = 1;
  return empty(1, &length, &stride, torch_dtype_of(dtype), like);
}

Tensor empty_bytes(int64_t length, const Tensor& like) {  // uint8
  const int64_t stride = 1;
  return empty(1, &length, &stride, aoti_torch_dtype_uint8(), like);
}

Tensor empty_matrix(int64_t height, int64_t width, DType dtype, const Tensor& like) {
  const std::array<int64_t, 2> sizes{height, width};
  const std::array<int64_t, 2> strides{width, 1};
  return empty(2, sizes.data(), strides.data(), torch_dtype_of(dtype), like);
}

void* data_of(Tensor& tensor) { return tensor.defined() ? tensor.mutable_data_ptr() : nullptr; }

constexpr int64_t kMaxDims = 5;
using Strides = std::array<int64_t, kMaxDims>;

// The strides of a tensor [N, C, *spatial] without gaps in this layout.
Strides strides_in(Layout layout, const Tensor& x) {
  Strides strides{};
  int64_t step = 1;
  const auto place = [&](int64_t dim) {
    strides[dim] = step;
    step *= x.size(dim);
  };
  if (layout == Layout::nhwc) place(1);
  for (int64_t dim = x.dim() - 1; dim >= 2; --dim) place(dim);
  if (layout == Layout::nchw) place(1);
  place(0);
  return strides;
}

bool lies_in(Layout layout, const Tensor& x) {
  if (layout == Layout::nchw) return x.is_contiguous();
  const Strides strides = strides_in(layout, x);
  for (int64_t dim = 0; dim < x.dim(); ++dim) {
    if (x.size(dim) != 1 && x.stride(dim) != strides[dim] && x.numel() != 0) return false;
  }
  return true;
}

// x itself if it lies in this layout without gaps, else a copy that does.
Tensor in_layout(Layout layout, const Tensor& x) {
  if (lies_in(layout, x)) return x;
  Tensor copy = empty(x.dim(), x.sizes().data(), strides_in(layout, x).data(),
                      torch_dtype_of(dtype_of(x)), x);
  torch::stable::copy_(copy, x);
  return copy;
}

// The layout in which x is read: its own, or the one nearest to its strides. Mirrored by
// _ops._output_like.
Layout layout_of(const Tensor& x) {
  if (x.is_contiguous()) return Layout::nchw;
  if (lies_in(Layout::nhwc, x)) return Layout::nhwc;
  return x.dim() > 3 && x.stride(1) == 1 && x.size(1) > 1 ? Layout::nhwc : Layout::nchw;
}

}  // namespace
}  // namespace seblock
