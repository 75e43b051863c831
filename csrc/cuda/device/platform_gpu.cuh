// The GPU back end of platform.cuh.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cuda/atomic>

#include "runtime.h"
#include "tiling.h"

// Of a kernel of which `blocks` share a multiprocessor.
#define SEBLOCK_KERNEL_OF(blocks) __global__ void __launch_bounds__(seblock::kBlockThreads, blocks)
#define SEBLOCK_DEVICE __device__ __forceinline__

namespace seblock::cuda {

// Volatile: what follows from it is worked out anew for each task of a block, rather than kept in
// registers meanwhile.
SEBLOCK_DEVICE int thread_index() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}
SEBLOCK_DEVICE int block_index() { return static_cast<int>(blockIdx.x); }
SEBLOCK_DEVICE int grid_blocks() { return static_cast<int>(gridDim.x); }
SEBLOCK_DEVICE void sync_threads() { __syncthreads(); }

template <typename T>
SEBLOCK_DEVICE T shuffle_xor(T value, int lane_mask) {
  return __shfl_xor_sync(0xffffffffu, value, lane_mask);
}

// Counters that the blocks of a launch share, zeroed before it. What a block wrote before its
// sync_threads() and publish() is seen by every thread after the sync_threads() that follows
// await().
using Counter = ::cuda::atomic_ref<uint32_t, ::cuda::thread_scope_device>;

SEBLOCK_DEVICE uint32_t take_ticket(uint32_t* counter) {
  return Counter(*counter).fetch_add(1, ::cuda::memory_order_relaxed);
}
// Counts one in and returns how many were there: the last one sees what all others wrote before.
SEBLOCK_DEVICE uint32_t arrive(uint32_t* counter) {
  return Counter(*counter).fetch_add(1, ::cuda::memory_order_acq_rel);
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

// A launch may begin before the one before it in the stream has ended (sm_90 and newer): it waits
// here before it touches what that one wrote or reads.
SEBLOCK_DEVICE void await_launch_before() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
SEBLOCK_DEVICE void let_next_launch_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// The pointer in a register: the compiler would rather work it out anew at every access.
template <typename T>
SEBLOCK_DEVICE T* in_register(T* pointer) {
  asm("" : "+l"(pointer));
  __builtin_assume(__isGlobal(pointer));  // as it was before
  return pointer;
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

// Launches kernel(params) on `stream` and raises if the launch was refused. With `overlap` it may
// begin before the launch before it in the stream has ended.
template <typename Params>
void launch(const char* name, void (*kernel)(Params), int64_t blocks, size_t shared_bytes,
            void* stream, Params params, bool overlap = false) {
  void* arguments[] = {&params};
  launch_kernel(name, reinterpret_cast<const void*>(kernel), blocks, shared_bytes, stream,
                arguments, overlap);
}

// Blocks of the kernel that a multiprocessor of the current device holds.
template <typename Params>
int blocks_per_multiprocessor(void (*kernel)(Params), size_t shared_bytes) {
  int blocks = 0;
  check("occupancy",
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(
            &blocks, reinterpret_cast<const void*>(kernel), kBlockThreads, shared_bytes));
  return blocks;
}

}  // namespace seblock::cuda
