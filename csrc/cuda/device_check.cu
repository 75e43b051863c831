// Whether the kernels can run on a device, and its limits: asked once per device, before its first
// launch.
#include <cuda_runtime.h>

#include <array>
#include <atomic>
#include <mutex>
#include <stdexcept>
#include <string>

#include "launch.h"

namespace seblock::cuda {
namespace {

__global__ void probe_kernel() {}  // compiled for the same architectures as every kernel

std::string version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

#define SEBLOCK_STRING_OF(...) #__VA_ARGS__
#define SEBLOCK_STRING(...) SEBLOCK_STRING_OF(__VA_ARGS__)

void check(int device) {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, probe_kernel);
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clears it
  if (error == cudaErrorInsufficientDriver) {
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    throw std::runtime_error("seblock_cuda: the driver serves CUDA " + version(driver) +
                             ", the kernels were built with CUDA " + version(runtime) +
                             ": update the driver");
  }
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  const std::string capability = std::to_string(major) + "." + std::to_string(minor);
  throw std::runtime_error(
      "seblock_cuda: device " + std::to_string(device) + " has compute capability " + capability +
      ", the kernels were built for " SEBLOCK_STRING(__CUDA_ARCH_LIST__) " (" +
      cudaGetErrorString(error) + "): rebuild with TORCH_CUDA_ARCH_LIST=" + capability);
}

constexpr int kMaxDevices = 64;

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&value, which, device);
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("seblock_cuda: ") + cudaGetErrorString(error));
  return value;
}

}  // namespace

const DeviceLimits& limits_of(int device) {
  static std::array<std::once_flag, kMaxDevices> asked;
  static std::array<DeviceLimits, kMaxDevices> limits;
  if (device < 0 || device >= kMaxDevices)
    throw std::runtime_error("seblock_cuda: device " + std::to_string(device) + " is one too many");
  std::call_once(asked[device], [&] {
    limits[device] = {attribute(cudaDevAttrMultiProcessorCount, device),
                      attribute(cudaDevAttrL2CacheSize, device),
                      attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
                      attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device)};
  });
  return limits[device];
}

void require_usable(int device) {
  static std::array<std::atomic<bool>, kMaxDevices> usable{};
  if (device < kMaxDevices && usable[device].load(std::memory_order_relaxed)) return;
  check(device);
  if (device < kMaxDevices) usable[device].store(true, std::memory_order_relaxed);
}

}  // namespace seblock::cuda
