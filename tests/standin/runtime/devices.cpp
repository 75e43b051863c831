// The devices, their limits, and errors.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <utility>

#include "standin.h"

namespace standin {
namespace {

std::vector<std::string> faults;
thread_local cudaError_t last_error = cudaSuccess;
thread_local std::string last_text;

// A failure that a test has asked for.
struct {
  std::string call;
  cudaError_t error;
} plan;

// The devices of the machine that may be seen, as CUDA_VISIBLE_DEVICES lists them.
const std::vector<int>& visible() {
  static const std::vector<int> list = [] {
    const int there = static_cast<int>(setting("DEVICES", 2));
    std::vector<int> result;
    const char* text = getenv("CUDA_VISIBLE_DEVICES");
    std::istringstream numbers(text ? text : "0,1,2,3,4,5,6,7");
    std::string one;
    while (std::getline(numbers, one, ',') && atoi(one.c_str()) < there && isdigit(one[0])) {
      result.push_back(atoi(one.c_str()));
    }
    return result;
  }();
  return list;
}

}  // namespace

std::recursive_mutex everything;
thread_local int current_device = 0;

const char* told(std::vector<std::string>& lines) {
  Lock lock(everything);
  thread_local std::string text;
  text.clear();
  for (const std::string& one : lines) text += one + "\n";
  lines.clear();
  return text.c_str();
}

int64_t setting(const char* name, int64_t otherwise, int device) {
  const char* text = getenv((std::string("STANDIN_") + name).c_str());
  if (!text || !*text) return otherwise;
  std::istringstream numbers(text);
  std::string one, last;
  while (device-- >= 0 && std::getline(numbers, one, ',')) last = one;
  return atoll(last.c_str());
}

int devices() { return static_cast<int>(visible().size()); }
int64_t total_bytes(int device) { return setting("MEGABYTES", 4096, visible()[device]) << 20; }
int64_t shared_bytes(int device) { return setting("SHARED_KB", 227, visible()[device]) << 10; }

cudaError_t report(cudaError_t error, const std::string& text) {
  last_text = text;
  return last_error = error;
}
cudaError_t fault(cudaError_t error, const std::string& text) {
  Lock lock(everything);
  faults.push_back(text);
  return report(error, text);
}
std::string text_of_last_error() { return last_text; }

cudaError_t planned(const char* call) {
  if (plan.call != call) return cudaSuccess;
  plan.call.clear();
  return report(plan.error, "as a test has asked");
}

}  // namespace standin

using namespace standin;

extern "C" {

// ---- for tests ----

const char* standin_faults() { return told(faults); }
void standin_fail_next(const char* call, int error) {
  Lock lock(everything);
  plan = {call, static_cast<cudaError_t>(error)};
}
int standin_refuse(const char* name) {
  return fault(cudaErrorNotSupported, std::string(name) + " is not in the stand-in");
}

// ---- devices ----

cudaError_t cudaGetDeviceCount(int* count) {
  initialise();
  *count = devices();
  return *count ? cudaSuccess : report(cudaErrorNoDevice, "no CUDA-capable device is detected");
}
cudaError_t cudaGetDevice(int* device) { return *device = current_device, cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
  initialise();
  if (device < 0 || device >= devices())
    return fault(cudaErrorInvalidDevice, "cudaSetDevice(" + std::to_string(device) + ")");
  current_device = device;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  return *version = static_cast<int>(setting("DRIVER", CUDART_VERSION)), cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  if (device < 0 || device >= devices())
    return fault(cudaErrorInvalidDevice, "cudaGetDeviceProperties");
  const int number = visible()[device];
  *p = {};
  snprintf(p->name, sizeof p->name, "Stand-in GPU %d", number);
  p->uuid.bytes[15] = static_cast<char>(number + 1);
  p->totalGlobalMem = total_bytes(device);
  p->sharedMemPerBlock = kSharedWithoutAsking;
  p->sharedMemPerBlockOptin = shared_bytes(device);
  p->sharedMemPerMultiprocessor = shared_bytes(device) + 1024;
  p->reservedSharedMemPerBlock = 1024;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsPerMultiProcessor = 2048;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = INT32_MAX, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  const int64_t capability = setting("CAPABILITY", 90, number);
  p->major = static_cast<int>(capability / 10), p->minor = static_cast<int>(capability % 10);
  p->multiProcessorCount = static_cast<int>(setting("MULTIPROCESSORS", 4, number));
  p->l2CacheSize = static_cast<int>(setting("L2_MEGABYTES", 50, number)) << 20;
  p->unifiedAddressing = p->concurrentKernels = 1;
  p->pciBusID = number + 1;
  p->memoryBusWidth = 5120;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int device) {
  cudaDeviceProp p;
  RETURN_IF(cudaGetDeviceProperties(&p, device));
  const std::map<int, size_t> known{
      {cudaDevAttrMaxThreadsPerBlock, p.maxThreadsPerBlock},
      {cudaDevAttrMaxThreadsPerMultiProcessor, p.maxThreadsPerMultiProcessor},
      {cudaDevAttrMultiProcessorCount, p.multiProcessorCount},
      {cudaDevAttrL2CacheSize, p.l2CacheSize},
      {cudaDevAttrMaxSharedMemoryPerBlock, p.sharedMemPerBlock},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, p.sharedMemPerBlockOptin},
      {cudaDevAttrMaxSharedMemoryPerMultiprocessor, p.sharedMemPerMultiprocessor},
      {cudaDevAttrComputeCapabilityMajor, p.major},
      {cudaDevAttrComputeCapabilityMinor, p.minor},
      {cudaDevAttrWarpSize, p.warpSize},
      {cudaDevAttrClockRate, 1000000},
      {cudaDevAttrMemoryClockRate, 1000000},
      {cudaDevAttrUnifiedAddressing, 1},
  };
  const auto found = known.find(which);
  *value = found == known.end() ? 0 : static_cast<int>(found->second);
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* out, int length, int device) {
  snprintf(out, length, "0000:%02x:00.0", visible()[device] + 1);
  return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return *least = 0, *greatest = -5, cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 0, cudaSuccess; }
cudaError_t cudaDeviceSynchronize() {
  Lock lock(everything);
  initialise();
  RETURN_IF(refused_in_capture("cudaDeviceSynchronize"));
  finish_device(current_device);
  return state(current_device);
}
cudaError_t cudaProfilerStart() { return cudaSuccess; }
cudaError_t cudaProfilerStop() { return cudaSuccess; }

// ---- errors ----

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }
const char* cudaGetErrorName(cudaError_t error) {
  thread_local std::string text;
  text = "cudaError " + std::to_string(error);
  return text.c_str();
}
const char* cudaGetErrorString(cudaError_t error) {
  thread_local std::string text;
  text = cudaGetErrorName(error) + (": " + last_text);
  return text.c_str();
}

// ---- the driver, as torch asks for it ----

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** out, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  *out = driver ? dlsym(driver, symbol) : nullptr;
  if (result) *result = *out ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

}  // extern "C"
