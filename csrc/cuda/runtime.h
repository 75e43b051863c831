// The CUDA runtime as this library calls it: every error is raised here, and none is left behind.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace seblock::cuda {

// Raises, naming the call, if what it returned is an error.
void check(const char* call, cudaError_t error);

// Zeroes counters, on `stream`.
void clear(uint32_t* counters, size_t bytes, void* stream);

// Launches a kernel (the address that stands for it on the host) on `stream`, or raises.
// `arguments`: the address of each of its arguments. `overlap`: it may begin before the launch
// before it in the stream has ended.
void launch_kernel(const char* name, const void* kernel, int64_t blocks, size_t shared_bytes,
                   void* stream, void** arguments, bool overlap);

}  // namespace seblock::cuda
