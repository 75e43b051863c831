// How the forward and the backward workspace are divided. The same for every instruction set.
#pragma once

#include "se_types.h"

namespace seblock::cpu {
namespace {

// NHWC sums are made per block of this many rows of [S, C], each in acc_t, then over the blocks in
// float64. The blocks are fixed by S alone, so a sample's bits depend neither on N nor on threads.
constexpr int64_t kRowBlock = 128;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Hands out pieces of one allocation, each aligned to a cache line.
struct Carver {
  char* base;
  int64_t used;

  void* take(int64_t bytes) {
    void* piece = base ? base + used : nullptr;
    used += ceil_div(bytes, 64) * 64;
    return piece;
  }
};

// Alignment of the whole: ops.cpp may hand in any address.
inline char* align_up(void* pointer) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  return static_cast<char*>(pointer) + (64 - address % 64) % 64;
}

inline int64_t row_blocks(const Shape& shape) { return ceil_div(shape.s, kRowBlock); }

// Bytes of the block sums of an NHWC squeeze; one block needs none, it sums straight into the
// result.
inline int64_t block_sum_bytes(const Problem& problem) {
  const Shape& shape = problem.shape;
  if (problem.layout == Layout::nchw || row_blocks(shape) == 1) return 0;
  return shape.n * row_blocks(shape) * shape.c * (problem.dtype == DType::float64 ? 8 : 4);
}

struct ForwardWorkspace {
  void* hidden;      // [N, R] acc_t
  void* block_sums;  // [N, row blocks, C] acc_t, or empty
  int64_t bytes;

  ForwardWorkspace(const Problem& problem, void* workspace) {
    const Shape& shape = problem.shape;
    const int64_t acc_bytes = problem.dtype == DType::float64 ? 8 : 4;
    Carver carver{workspace ? align_up(workspace) : nullptr, 0};
    hidden = carver.take(shape.n * shape.r * acc_bytes);
    block_sums = carver.take(block_sum_bytes(problem));
    bytes = carver.used + 64;
  }
};

struct BackwardWorkspace {
  void* hidden;      // [N, R] acc_t
  void* dz1;         // [N, R] acc_t
  void* dz2;         // [N, C] acc_t
  void* shift;       // [N, C] acc_t  dpooled / S
  void* block_sums;  // [N, row blocks, C] acc_t, or empty
  int64_t bytes;

  BackwardWorkspace(const Problem& problem, void* workspace) {
    const Shape& shape = problem.shape;
    const int64_t acc_bytes = problem.dtype == DType::float64 ? 8 : 4;
    Carver carver{workspace ? align_up(workspace) : nullptr, 0};
    hidden = carver.take(shape.n * shape.r * acc_bytes);
    dz1 = carver.take(shape.n * shape.r * acc_bytes);
    dz2 = carver.take(shape.n * shape.c * acc_bytes);
    shift = carver.take(shape.n * shape.c * acc_bytes);
    block_sums = carver.take(block_sum_bytes(problem));
    bytes = carver.used + 64;
  }
};

}  // namespace
}  // namespace seblock::cpu
