// Whether the kernels can run on a device, and its limits: asked once per device, before its first
// launch.
#include <cuda_runtime.h>

#include <array>
#include <atomic>
#include <mutex>
#include <stdexcept>
#include <string>

#include "drivers/drivers.h"
#include "launch.h"
#include "runtime.h"

namespace seblock::cuda {
namespace {

__global__ void probe_kernel() {}  // compiled for the same architectures as every kernel

std::string version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check("cudaDeviceGetAttribute", cudaDeviceGetAttribute(&value, which, device));
  return value;
}

void check_usable(int device) {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, probe_kernel);
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clears it
  if (const std::string problem = driver_problem(); !problem.empty())
    throw std::runtime_error("seblock_cuda: " + problem);
  const std::string capability =
      std::to_string(attribute(cudaDevAttrComputeCapabilityMajor, device)) + "." +
      std::to_string(attribute(cudaDevAttrComputeCapabilityMinor, device));
  throw std::runtime_error("seblock_cuda: device " + std::to_string(device) +
                           " has compute capability " + capability +
                           ", the kernels were not built for it (" + cudaGetErrorString(error) +
                           "): rebuild with TORCH_CUDA_ARCH_LIST=" + capability);
}

constexpr int kMaxDevices = 64;

}  // namespace

std::string driver_problem() {
  int driver = 0, runtime = 0;
  check("cudaDriverGetVersion", cudaDriverGetVersion(&driver));
  check("cudaRuntimeGetVersion", cudaRuntimeGetVersion(&runtime));
  // Within a major version, an older driver serves; 0 is no driver at all.
  if (driver == 0 || driver / 1000 >= runtime / 1000) return "";
  return "the driver serves CUDA " + version(driver) + ", the kernels were built with CUDA " +
         version(runtime) + ": update the driver";
}

const DeviceLimits& limits_of(int device) {
  static std::array<std::once_flag, kMaxDevices> asked;
  static std::array<DeviceLimits, kMaxDevices> limits;
  if (device < 0 || device >= kMaxDevices)
    throw std::runtime_error("seblock_cuda: device " + std::to_string(device) + " is one too many");
  std::call_once(asked[device], [&] {
    limits[device] = {10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
                          attribute(cudaDevAttrComputeCapabilityMinor, device),
                      attribute(cudaDevAttrMultiProcessorCount, device),
                      attribute(cudaDevAttrL2CacheSize, device),
                      attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device), stream_blocks()};
  });
  return limits[device];
}

void require_usable(int device) {
  static std::array<std::atomic<bool>, kMaxDevices> usable{};
  if (device < kMaxDevices && usable[device].load(std::memory_order_relaxed)) return;
  check_usable(device);
  if (device < kMaxDevices) usable[device].store(true, std::memory_order_relaxed);
}

}  // namespace seblock::cuda
