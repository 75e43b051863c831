// The SIMT harness back end of platform.cuh: one fiber per thread on a CPU (tests/simt).
#pragma once

#include <cstdint>

#include "plan.h"
#include "simt.h"

#define SEBLOCK_KERNEL void
#define SEBLOCK_DEVICE inline

namespace seblock::cuda {

inline int thread_index() { return static_cast<int>(simt::thread_index()); }
inline int block_index() { return static_cast<int>(simt::block_index()); }
inline int grid_blocks() { return static_cast<int>(simt::grid_blocks()); }
inline void sync_threads() { simt::sync_threads(); }

template <typename T>
T shuffle_xor(T value, int lane_mask) {
  return simt::shuffle_xor(value, lane_mask);
}

inline uint64_t multiply_high(uint64_t a, uint64_t b) {
  __extension__ using uint128 = unsigned __int128;
  return static_cast<uint64_t>(static_cast<uint128>(a) * b >> 64);
}

inline void* shared_memory() { return simt::shared_memory(); }

template <typename Params>
void launch(const char* name, void (*kernel)(Params), int64_t blocks, size_t shared_bytes, void* /*stream*/,
            const Params& params) {
  simt::launch({name, static_cast<unsigned>(blocks), static_cast<unsigned>(kBlockThreads), shared_bytes},
               [&] { kernel(params); });
}

}  // namespace seblock::cuda
