// The SIMT harness back end of platform.cuh: one fiber per thread on a CPU (tests/simt).
#pragma once

#include <cstdint>
#include <cstring>

#include "simt.h"
#include "tiling.h"

#define SEBLOCK_KERNEL_OF(blocks) void
#define SEBLOCK_DEVICE inline __attribute__((always_inline))

namespace seblock::cuda {

inline int thread_index() { return static_cast<int>(simt::thread_index()); }
inline int block_index() { return static_cast<int>(simt::block_index()); }
inline int grid_blocks() { return static_cast<int>(simt::grid_blocks()); }
inline void sync_threads() { simt::sync_threads(); }

template <typename T>
T shuffle_xor(T value, int lane_mask) {
  return simt::shuffle_xor(value, lane_mask);
}

// Counters. A fiber runs until it waits, so these need no atomic instructions; the recording hears
// of release and acquire only.
inline uint32_t take_ticket(uint32_t* counter) { return (*counter)++; }
inline uint32_t arrive(uint32_t* counter) {
  simt::access(counter, sizeof *counter, simt::Access::release);
  const uint32_t before = (*counter)++;
  simt::access(counter, sizeof *counter, simt::Access::acquire);
  return before;
}
inline void publish(uint32_t* counter) {
  simt::access(counter, sizeof *counter, simt::Access::release);
  ++*counter;
}
inline void await(uint32_t* counter, uint32_t count) {
  while (*static_cast<volatile uint32_t*>(counter) < count) simt::spin();
  simt::access(counter, sizeof *counter, simt::Access::acquire);
}

template <typename T>
SEBLOCK_DEVICE T* in_register(T* pointer) {
  return pointer;
}
inline void await_launch_before() {}
inline void let_next_launch_begin() {}

template <typename T>
SEBLOCK_DEVICE T load_streaming(const T* address) {
  return *address;
}
template <typename T>
SEBLOCK_DEVICE void store_streaming(T* address, const T& value) {
  *address = value;
}

// The harness hears of every access before it happens: see tests/simt/simt.h.
template <typename T>
SEBLOCK_DEVICE void before_load(const T* address) {
  simt::access(address, sizeof(T), simt::Access::read);
}
template <typename T>
SEBLOCK_DEVICE void before_store(const T* address) {
  simt::access(address, sizeof(T), simt::Access::write);
}

// Shared memory as an array of T, like a T*.
template <typename T>
class Shared {
 public:
  class Element {
   public:
    SEBLOCK_DEVICE explicit Element(T* address) : address_(address) {}
    SEBLOCK_DEVICE operator T() const {
      simt::access(address_, sizeof(T), simt::Access::read);
      return *address_;
    }
    SEBLOCK_DEVICE void operator=(T value) {
      simt::access(address_, sizeof(T), simt::Access::write);
      *address_ = value;
    }
    void operator=(const Element&) = delete;
    SEBLOCK_DEVICE void operator+=(T value) { *this = static_cast<T>(*this) + value; }

   private:
    T* address_;
  };

  explicit Shared(T* address) : address_(address) {}
  SEBLOCK_DEVICE Element operator[](int64_t i) const { return Element(address_ + i); }
  SEBLOCK_DEVICE Shared operator+(int64_t i) const { return Shared(address_ + i); }

 private:
  T* address_;
};

template <typename T>
SEBLOCK_DEVICE Shared<T> shared_memory() {
  return Shared<T>(static_cast<T*>(simt::shared_memory()));
}

inline void clear(uint32_t* counters, size_t bytes, void* /*stream*/) {
  std::memset(counters, 0, bytes);
}

template <typename Params>
void launch(const char* name, void (*kernel)(Params), int64_t blocks, size_t shared_bytes,
            void* /*stream*/, const Params& params, bool /*overlap*/ = false) {
  simt::launch(
      {name, static_cast<unsigned>(blocks), static_cast<unsigned>(kBlockThreads), shared_bytes},
      [&] { kernel(params); });
}

template <typename Params>
int blocks_per_multiprocessor(void (*)(Params), size_t) {
  return 1;
}

}  // namespace seblock::cuda
