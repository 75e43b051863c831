// The glossary: what one Squeeze-and-Excitation problem is made of. No torch, no CUDA runtime.
//
//   pooled = mean over space of x          [N, C]
//   z1     = W1 pooled + b1                [N, R]      hidden = activation(z1)
//   gate   = gate_function(W2 hidden + b2) [N, C]
//   y      = x * gate                      like x
// or, with a residual, y = tail(x * gate + residual)
//
// Gradients prefix `d`. Sums, pooled, z1, gate and everything between them are held in acc_t:
// float32 for float32, bfloat16 and float16 inputs, float64 for float64 inputs.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define SEBLOCK_HOST_DEVICE __host__ __device__ __forceinline__
#else
// Always inlined: cpu/ compiles this file once per instruction set, and the linker must not choose
// among the copies.
#define SEBLOCK_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace seblock {

// x is [N, C, S] (nchw) or [N, S, C] (nhwc); S is the product of the 1 to 3 spatial extents.
enum class Layout : int { nchw, nhwc };
enum class DType : int { float32, bfloat16, float16, float64 };

// The order is the order of the names in seblock_cuda/functional.py.
enum class Activation : int { relu, silu, gelu, hardswish, leaky_relu, identity };
enum class Gate : int { sigmoid, hardsigmoid, relu };
enum class Tail : int { none, add, add_relu };  // what comes after x * gate

struct Shape {
  int64_t n;  // samples
  int64_t c;  // channels
  int64_t s;  // spatial positions
  int64_t r;  // reduced channels
};

struct Problem {
  Shape shape;
  Layout layout;
  DType dtype;         // of x, y and their gradients
  DType weight_dtype;  // of weights, biases and their gradients: dtype or float32
  Activation activation;
  Gate gate;
  Tail tail;
};

struct Weights {
  const void* reduce;       // [R, C]  W1
  const void* expand;       // [C, R]  W2
  const void* reduce_bias;  // [R]     b1, or null
  const void* expand_bias;  // [C]     b2, or null
};

struct ForwardParams {
  Problem problem;
  Weights weights;
  const void* x;         // [N, C, S] or [N, S, C]
  const void* residual;  // like x, or null
  void* y;               // like x
  void* mask;            // [mask_bytes] one byte per 16-byte vector of x, or null
  void* pooled;          // [N, C] acc_t, saved for the backward
  void* z1;              // [N, R] acc_t, saved for the backward
  void* gate;            // [N, C] acc_t, saved for the backward
  void* workspace;       // forward workspace, see plan.h and cpu/cpu.h
};

struct BackwardParams {
  Problem problem;
  Weights weights;
  const void* dy;      // like x
  const void* x;       // [N, C, S] or [N, S, C]
  const void* mask;    // as the forward wrote it, or null
  const void* pooled;  // [N, C] acc_t
  const void* z1;      // [N, R] acc_t
  const void* gate;    // [N, C] acc_t
  void* dx;            // like x
  void* dresidual;     // like x, or null
  void* dreduce;       // [R, C] weight dtype
  void* dexpand;       // [C, R] weight dtype
  void* dreduce_bias;  // [R]    weight dtype, or null
  void* dexpand_bias;  // [C]    weight dtype, or null
  void* workspace;     // backward workspace
};

constexpr int64_t bytes_of(DType dtype) {
  return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}

constexpr int64_t acc_bytes_of(DType dtype) { return dtype == DType::float64 ? 8 : 4; }

// A vector is 16 bytes of x, counted from the sample's first element, in nhwc from the row's: the
// last one may be incomplete.
inline int64_t vector_elements(DType dtype) { return 16 / bytes_of(dtype); }

inline int64_t vectors_per_sample(const Problem& problem) {
  const Shape& shape = problem.shape;
  const int64_t vec = vector_elements(problem.dtype);
  return problem.layout == Layout::nchw && shape.s > 1 ? (shape.c * shape.s + vec - 1) / vec
                                                       : shape.s * ((shape.c + vec - 1) / vec);
}

// The mask of Tail::add_relu says where dy passes: a byte for each vector of y, a bit for each of
// its elements, the first in the lowest bit. A bit is set unless y <= 0, y as it was stored (NaN
// passes, as in PyTorch); bits past the end are 0. The CPU kernels number the vectors through the
// whole tensor, which needs no more of them.
inline int64_t mask_bytes(const Problem& problem) {
  return problem.tail == Tail::add_relu ? problem.shape.n * vectors_per_sample(problem) : 0;
}

}  // namespace seblock
