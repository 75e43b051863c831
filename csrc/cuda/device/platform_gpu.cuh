// The GPU back end of platform.cuh.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cuda/atomic>

#include "plan.h"
#include "runtime.h"

#define SEBLOCK_KERNEL __global__ void __launch_bounds__(seblock::kBlockThreads, 1)
// For kernels of which `blocks` are to share a multiprocessor.
#define SEBLOCK_KERNEL_OF(blocks) __global__ void __launch_bounds__(seblock::kBlockThreads, blocks)
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

// The upper half of a product of twice the width.
SEBLOCK_DEVICE uint64_t multiply_high(uint64_t a, uint64_t b) { return __umul64hi(a, b); }
SEBLOCK_DEVICE uint32_t multiply_high(uint32_t a, uint32_t b) { return __umulhi(a, b); }

// Counters that the blocks of a launch share, zeroed before it. What a block wrote before its
// sync_threads() and publish() is seen by every thread after the sync_threads() that follows
// await().
using Counter = ::cuda::atomic_ref<uint32_t, ::cuda::thread_scope_device>;

SEBLOCK_DEVICE uint32_t take_ticket(uint32_t* counter) {
  return Counter(*counter).fetch_add(1, ::cuda::memory_order_relaxed);
}
SEBLOCK_DEVICE void publish(uint32_t* counter) {
  Counter(*counter).fetch_add(1, ::cuda::memory_order_release);
}
SEBLOCK_DEVICE void await(uint32_t* counter, uint32_t count) {
  while (Counter(*counter).load(::cuda::memory_order_acquire) < count) __nanosleep(64);
}

// 16-byte accesses to what nobody will touch again soon: the first to leave the caches.
template <typename T>
SEBLOCK_DEVICE T load_streaming(const T* address) {
  const uint4 bits = __ldcs(reinterpret_cast<const uint4*>(address));
  return {{bits.x, bits.y, bits.z, bits.w}};
}
template <typename T>
SEBLOCK_DEVICE void store_streaming(T* address, const T& value) {
  const auto& words = value.words;
  __stcs(reinterpret_cast<uint4*>(address), make_uint4(words[0], words[1], words[2], words[3]));
}

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
            void* stream, Params params) {
  void* arguments[] = {&params};
  launch_kernel(name, reinterpret_cast<const void*>(kernel), blocks, shared_bytes, stream,
                arguments);
}

}  // namespace seblock::cuda
