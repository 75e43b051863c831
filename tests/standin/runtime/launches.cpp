// Kernels: who they are, and whether a launch of one would be accepted.
#include <cxxabi.h>
#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <unordered_map>

#include "kernels.h"
#include "standin.h"

namespace standin {
namespace {

struct Kernel {
  std::string symbol;
  std::string name;                          // for people: squeeze_nchw_kernel
  int most_threads;                          // by its launch bounds; 0: no bounds
  int64_t shared_allowed[kMaxDevices] = {};  // by cudaFuncSetAttribute
};
// By the address that stands for it on the host. Made by constructors of libraries: no destructor.
std::unordered_map<const void*, Kernel>& kernels() {
  static auto* all = new std::unordered_map<const void*, Kernel>;
  return *all;
}
Kernel* find(const void* host) {
  const auto found = kernels().find(host);
  return found == kernels().end() ? nullptr : &found->second;
}
cudaError_t no_such_kernel() {
  return fault(cudaErrorInvalidDeviceFunction, "a kernel that nobody has registered");
}

// squeeze_nchw_kernel of void seblock::cuda::squeeze_nchw_kernel<...>(...)
std::string short_name(const char* symbol) {
  char* text = abi::__cxa_demangle(symbol, nullptr, nullptr, nullptr);
  std::string name = text ? text : symbol;
  free(text);
  name = name.substr(0, name.find_first_of("<("));
  return name.substr(name.find_last_of(": ") + 1);
}

const StandinKernels& source() {
  static const StandinKernels* table = [] {
    const char* path = getenv("STANDIN_KERNELS");
    void* library = dlopen(path ? path : "", RTLD_NOW | RTLD_LOCAL);
    void* symbol = library ? dlsym(library, "standin_kernels") : nullptr;
    if (!symbol) fprintf(stderr, "stand-in: STANDIN_KERNELS: %s\n", dlerror()), abort();
    return static_cast<const StandinKernels*>(symbol);
  }();
  return *table;
}

bool is_mapped(uintptr_t address) {
  unsigned char there;
  return mincore(reinterpret_cast<void*>(address / 4096 * 4096), 1, &there) == 0;
}

// Every word of the arguments that is an address is one of memory that is alive on the device.
cudaError_t check_pointers(const std::string& name, const void* argument, size_t bytes,
                           int device) {
  for (size_t at = 0; at + sizeof(uintptr_t) <= bytes; at += sizeof(uintptr_t)) {
    uintptr_t word;
    memcpy(&word, static_cast<const char*>(argument) + at, sizeof word);
    const void* address = reinterpret_cast<const void*>(word);
    const std::string what =
        name + ": the pointer at byte " + std::to_string(at) + " of its argument";
    if (owner(address) >= 0) {
      // A little beyond an end is allowed: whoever goes there meets the gap.
      if (owner(address) == device && just_beyond(address)) continue;
      RETURN_IF(check_range(address, 1, device, what));
    } else if (word > 1 << 20 && is_mapped(word)) {
      return fault(cudaErrorInvalidValue, what + " is one of host memory");
    }
  }
  return cudaSuccess;
}

// torch fills the seed and the offset of its generator when a capture begins: the one kernel of
// torch's own that is known here.
bool is_fill(const Kernel& kernel) {
  return kernel.symbol.find("FillFunctorIlEE") != std::string::npos &&
         kernel.symbol.find("elementwise_kernel") != std::string::npos;
}
cudaError_t fill(Stream& stream, void** arguments) {
  const int count = *static_cast<int*>(arguments[0]);
  const int64_t value = *static_cast<int64_t*>(arguments[1]);
  int64_t* to = *static_cast<int64_t**>(arguments[2]);
  RETURN_IF(check_range(to, count * sizeof(int64_t), stream.device, "fill"));
  enqueue(stream, {"fill", [=] { std::fill_n(to, count, value); }});
  return state(stream.device);
}

std::string text_of(dim3 size) {
  return std::to_string(size.x) + "x" + std::to_string(size.y) + "x" + std::to_string(size.z);
}

cudaError_t check_shape(const Kernel& kernel, dim3 grid, dim3 block, size_t shared, int device) {
  const std::string shape = kernel.name + ": grid " + text_of(grid) + ", block " + text_of(block) +
                            ", " + std::to_string(shared) + " bytes of shared memory";
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  const uint64_t most = kernel.most_threads > 0 ? kernel.most_threads : 1024;
  if (!grid.x || !grid.y || !grid.z || !threads || grid.x > INT32_MAX || grid.y > 65535 ||
      grid.z > 65535 || threads > most)
    return fault(cudaErrorInvalidConfiguration, shape + ": beyond the limits");
  const int64_t allowed = std::max<int64_t>(kSharedWithoutAsking, kernel.shared_allowed[device]);
  if (static_cast<int64_t>(shared) > allowed)
    return fault(cudaErrorInvalidValue, shape + ", of which it may have " +
                                            std::to_string(allowed) + " on device " +
                                            std::to_string(device));
  return cudaSuccess;
}

cudaError_t launch(const Kernel& kernel, dim3 grid, dim3 block, void** arguments, size_t shared,
                   cudaStream_t handle) {
  Lock lock(everything);
  Stream* stream;
  RETURN_IF(target(handle, kernel.name.c_str(), &stream));
  const int device = stream->device;
  RETURN_IF(check_shape(kernel, grid, block, shared, device));
  if (is_fill(kernel)) return fill(*stream, arguments);
  const char* symbol = kernel.symbol.c_str();
  const size_t bytes = source().argument_bytes(symbol);
  if (!bytes || grid.y > 1 || grid.z > 1)
    return report(cudaErrorNotSupported, "the stand-in cannot run this kernel: " + kernel.symbol);
  auto copy = std::make_shared<std::vector<std::max_align_t>>(bytes / sizeof(std::max_align_t) + 1);
  memcpy(copy->data(), arguments[0], bytes);
  source().clear_padding(symbol, copy->data());
  RETURN_IF(check_pointers(kernel.name, copy->data(), bytes, device));
  log_launch(*stream, kernel.name + " " + std::to_string(shared));
  const unsigned threads = block.x * block.y * block.z;
  enqueue(*stream,
          {kernel.name, [=] {
             if (check_pointers(kernel.name + ", when it runs", copy->data(), bytes, device))
               throw std::runtime_error(text_of_last_error());
             source().run(symbol, grid.x, threads, shared, copy->data());
           }});
  return state(device);
}

struct Configuration {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
};
thread_local std::vector<Configuration> configurations;
std::vector<std::string> launches;

}  // namespace

void log_launch(const Stream& stream, const std::string& what) {
  const char* kind = stream.capture ? " captured " : stream.is_default ? " default " : " side ";
  launches.push_back(std::to_string(stream.device) + kind + what);
}

}  // namespace standin

using namespace standin;

extern "C" {

// "device stream kernel bytes-of-shared-memory"
const char* standin_launches() { return told(launches); }

// ---- what nvcc's host code calls ----

void** __cudaRegisterFatBinary(void* binary) { return new void*(binary); }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* symbol, int most_threads,
                            uint3*, uint3*, dim3*, dim3*, int*) {
  kernels()[host] = {symbol, short_name(symbol), most_threads, {}};
}
cudaError_t __cudaGetKernel(cudaKernel_t* out, const void* host) {
  *out = reinterpret_cast<cudaKernel_t>(find(host));
  return *out ? cudaSuccess : no_such_kernel();
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, CUstream_st* stream) {
  configurations.push_back({grid, block, shared, stream});
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  const Configuration top = configurations.back();
  configurations.pop_back();
  *grid = top.grid, *block = top.block, *shared = top.shared;
  *static_cast<cudaStream_t*>(stream) = top.stream;
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                               size_t shared, cudaStream_t stream) {
  return launch(*reinterpret_cast<Kernel*>(kernel), grid, block, arguments, shared, stream);
}
cudaError_t cudaLaunchKernel(const void* host, dim3 grid, dim3 block, void** arguments,
                             size_t shared, cudaStream_t stream) {
  const Kernel* kernel = find(host);
  if (!kernel) return no_such_kernel();
  return launch(*kernel, grid, block, arguments, shared, stream);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* host, void** arguments) {
  // An attribute may say when the launch may begin: here it begins when all before it is done.
  for (unsigned i = 0; i < c->numAttrs; i++) {
    if (c->attrs[i].id != cudaLaunchAttributeProgrammaticStreamSerialization)
      return fault(cudaErrorNotSupported, "launch attribute " + std::to_string(c->attrs[i].id) +
                                              " is not in the stand-in");
  }
  RETURN_IF(planned("cudaLaunchKernelExC"));
  return cudaLaunchKernel(host, c->gridDim, c->blockDim, arguments, c->dynamicSmemBytes, c->stream);
}

// ---- attributes of kernels ----

cudaError_t cudaFuncSetAttribute(const void* host, cudaFuncAttribute which, int value) {
  Lock lock(everything);
  Kernel* kernel = find(host);
  if (!kernel) return no_such_kernel();
  RETURN_IF(planned("cudaFuncSetAttribute"));
  if (which != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  const std::string text = kernel->name + " " + std::to_string(value);
  if (value < 0 || value > shared_bytes(current_device))
    return fault(cudaErrorInvalidValue, text + " bytes of shared memory: more than a block has");
  launches.push_back(std::to_string(current_device) + " attribute " + text);
  kernel->shared_allowed[current_device] = value;
  return state(current_device);
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* out, const void* host) {
  Lock lock(everything);
  const Kernel* kernel = find(host);
  if (!kernel) return no_such_kernel();
  int driver = 0;
  cudaDriverGetVersion(&driver);
  if (driver / 1000 < CUDART_VERSION / 1000)
    return report(cudaErrorInsufficientDriver, "CUDA driver version is insufficient");
  if (setting("NO_IMAGE", 0))
    return report(cudaErrorNoKernelImageForDevice, "no kernel image is available");
  *out = {};
  out->maxThreadsPerBlock = 1024;
  out->maxDynamicSharedSizeBytes = static_cast<int>(
      std::max<int64_t>(kSharedWithoutAsking, kernel->shared_allowed[current_device]));
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int,
                                                                   size_t, unsigned) {
  return *blocks = 1, cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  return *blocks = 1, cudaSuccess;
}

}  // extern "C"
