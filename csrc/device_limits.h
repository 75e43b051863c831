// What the plan needs to know of a GPU: data, so that plans for any device are made on any machine.
#pragma once

#include <cstdint>

namespace seblock {

struct DeviceLimits {
  int multiprocessors;
  int64_t l2_bytes;
  int64_t shared_bytes;                     // a block may ask for
  int64_t shared_bytes_per_multiprocessor;  // of all its blocks
};

struct KnownDevice {
  const char* name;
  DeviceLimits limits;
};

constexpr int64_t kKiB = 1024;
constexpr int64_t kMiB = 1024 * kKiB;

// From NVIDIA's architecture white papers and the compute capability table of the CUDA C++
// Programming Guide.
constexpr KnownDevice kKnownDevices[] = {
    {"H200", {132, 50 * kMiB, 227 * kKiB, 228 * kKiB}},
    {"H100", {132, 50 * kMiB, 227 * kKiB, 228 * kKiB}},
    {"A100", {108, 40 * kMiB, 163 * kKiB, 164 * kKiB}},
    {"RTX 4090", {128, 72 * kMiB, 99 * kKiB, 100 * kKiB}},
    {"L4", {58, 48 * kMiB, 99 * kKiB, 100 * kKiB}},
    {"B200", {148, 126 * kMiB, 227 * kKiB, 228 * kKiB}},
    {"T4", {40, 4 * kMiB, 64 * kKiB, 64 * kKiB}},
};

}  // namespace seblock
