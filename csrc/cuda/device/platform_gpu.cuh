// The GPU back end of platform.cuh.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "plan.h"

#define SEBLOCK_KERNEL __global__ void __launch_bounds__(seblock::kBlockThreads, 1)
#define SEBLOCK_DEVICE __device__ __forceinline__

namespace seblock::cuda {

SEBLOCK_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
SEBLOCK_DEVICE int block_index() { return static_cast<int>(blockIdx.x); }
SEBLOCK_DEVICE int grid_blocks() { return static_cast<int>(gridDim.x); }
SEBLOCK_DEVICE void sync_threads() { __syncthreads(); }

template <typename T>
SEBLOCK_DEVICE T shuffle_xor(T value, int lane_mask) {
  return __shfl_xor_sync(0xffffffffu, value, lane_mask);
}

// The upper half of a 128-bit product.
SEBLOCK_DEVICE uint64_t multiply_high(uint64_t a, uint64_t b) { return __umul64hi(a, b); }

// For the SIMT harness, which hears of every access before it happens.
template <typename T>
SEBLOCK_DEVICE void before_load(const T*) {}
template <typename T>
SEBLOCK_DEVICE void before_store(const T*) {}

template <typename T>
using Shared = T*;

// The dynamic shared memory of the block.
template <typename T>
SEBLOCK_DEVICE Shared<T> shared_memory() {
  extern __shared__ __align__(16) unsigned char bytes[];
  return reinterpret_cast<T*>(bytes);
}

// Launches kernel(params) on `stream` and raises if the launch was refused.
template <typename Params>
void launch(const char* name, void (*kernel)(Params), int64_t blocks, size_t shared_bytes,
            void* stream, const Params& params) {
  if (blocks > INT32_MAX)
    throw std::runtime_error(std::string(name) + ": the grid has more than 2^31 - 1 blocks");
  kernel<<<static_cast<unsigned>(blocks), kBlockThreads, shared_bytes,
           static_cast<cudaStream_t>(stream)>>>(params);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(name) + ": " + cudaGetErrorString(error));
}

}  // namespace seblock::cuda
