// Launches, and what becomes of their errors.
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

#include "launch.h"
#include "runtime.h"
#include "tiling.h"

namespace seblock::cuda {
namespace {

constexpr size_t kSharedWithoutAsking = 48 * 1024;

// Whether the call was not refused, but told of a kernel that failed before: anybody's.
bool is_of_earlier_work(cudaError_t error) {
  return error == cudaErrorIllegalAddress || error == cudaErrorLaunchTimeout ||
         error == cudaErrorECCUncorrectable || error == cudaErrorAssert ||
         (error >= cudaErrorHardwareStackError && error <= cudaErrorLaunchFailure);
}

// Lets the kernel have as much shared memory as the current device gives a block. All of it, and
// once: a limit set launch by launch would be a race between threads.
void allow_shared_memory(const char* name, const void* kernel) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> allowed;
  int device = 0;
  check(name, cudaGetDevice(&device));
  const std::lock_guard<std::mutex> lock(mutex);
  if (allowed.count({kernel, device})) return;
  check(name, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(limits_of(device).shared_bytes)));
  allowed.insert({kernel, device});
}

}  // namespace

void check(const char* call, cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // forgets this one: whoever calls next has done nothing wrong
  const std::string text = cudaGetErrorString(error);
  throw std::runtime_error(
      is_of_earlier_work(error)
          ? "seblock_cuda: work that ran on this device before has failed: " + text + " (" + call +
                " only heard of it; CUDA_LAUNCH_BLOCKING=1 shows whose work it was)"
          : std::string("seblock_cuda: ") + call + ": " + text);
}

void clear(uint32_t* counters, size_t bytes, void* stream) {
  check("clear", cudaMemsetAsync(counters, 0, bytes, static_cast<cudaStream_t>(stream)));
}

void launch_kernel(const char* name, const void* kernel, int64_t blocks, size_t shared_bytes,
                   void* stream, void** arguments, bool overlap) {
  if (blocks > INT32_MAX)
    throw std::runtime_error(std::string("seblock_cuda: ") + name +
                             ": the grid has more than 2^31 - 1 blocks");
  if (shared_bytes > kSharedWithoutAsking) allow_shared_memory(name, kernel);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kBlockThreads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = overlap ? 1 : 0;
  check(name, cudaLaunchKernelExC(&config, kernel, arguments));
}

}  // namespace seblock::cuda
