// What the plan needs to know of a device: data, so that plans for any device are made on any
// machine.
#pragma once

#include <cstdint>

namespace seblock {

struct DeviceLimits {
  int capability;  // 90: 9.0
  int multiprocessors;
  int64_t l2_bytes;
  int64_t shared_bytes;  // a block may ask for
  // Blocks of strategy stream that a multiprocessor holds, as compiled.
  int stream_blocks;
};

struct KnownDevice {
  const char* name;
  DeviceLimits limits;
};

constexpr int64_t kKiB = 1024;
constexpr int64_t kMiB = 1024 * kKiB;

// From NVIDIA's architecture white papers and the compute capability table of the CUDA C++
// Programming Guide. Blocks: 64 registers a thread (docs/maintainers/compiled.md) and 16 KB of
// shared memory.
constexpr KnownDevice kKnownDevices[] = {
    {"H200", {90, 132, 50 * kMiB, 227 * kKiB, 4}},
    {"H100", {90, 132, 50 * kMiB, 227 * kKiB, 4}},
    // A slice of an H100 (MIG 1g): an eighth of everything but what a block may have.
    {"H100 1g.10gb", {90, 16, 6400 * kKiB, 227 * kKiB, 4}},
    {"A100", {80, 108, 40 * kMiB, 163 * kKiB, 4}},
    {"RTX 4090", {89, 128, 72 * kMiB, 99 * kKiB, 4}},
    {"L4", {89, 58, 48 * kMiB, 99 * kKiB, 4}},
    {"B200", {100, 148, 126 * kMiB, 227 * kKiB, 4}},
    {"T4", {75, 40, 4 * kMiB, 64 * kKiB, 4}},
};

}  // namespace seblock
