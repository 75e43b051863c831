// Device memory: host memory that only work on a stream may touch.
//
// Each device has a range of addresses of its own. None is used twice; what is not allocated, and
// everything while no work runs, is inaccessible; fresh memory is NaN.
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "standin.h"

namespace standin {
namespace {

constexpr size_t kReserved = size_t{1} << 40, kPage = 4096;

size_t pages(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }
uintptr_t number(const void* address) { return reinterpret_cast<uintptr_t>(address); }
std::string hex(const void* address) {
  char text[32];
  snprintf(text, sizeof text, "%p", address);
  return text;
}

struct Memory {
  uintptr_t base = 0, next = 0;
  std::map<uintptr_t, size_t> allocated;  // bytes as asked for
  size_t used = 0;
  int opened = 0;  // by work that runs; by STANDIN_OPEN for good, for closing what is large is dear

  // The allocation that begins at this address or before it; end() if there is none.
  auto before(uintptr_t address) {
    const auto after = allocated.upper_bound(address);
    return after == allocated.begin() ? allocated.end() : std::prev(after);
  }
  void protect(int how) {
    for (const auto& [start, bytes] : allocated) protect(start, bytes, how);
  }
  static void protect(uintptr_t start, size_t bytes, int how) {
    mprotect(reinterpret_cast<void*>(start / kPage * kPage), pages(bytes), how);
  }
};
Memory memories[kMaxDevices];
std::map<uintptr_t, size_t> pinned;  // host memory

bool is_pinned(const void* address) {
  const auto after = pinned.upper_bound(number(address));
  return after != pinned.begin() &&
         number(address) - std::prev(after)->first < std::prev(after)->second;
}

std::string describe(const void* address) {
  const int device = owner(address);
  std::string text = hex(address) + ", ";
  if (device < 0) return text + "host memory";
  text += "memory of device " + std::to_string(device);
  const auto found = memories[device].before(number(address));
  if (found == memories[device].allocated.end()) return text + " that was never allocated";
  const auto [start, bytes] = *found;
  const size_t offset = number(address) - start;
  return text + ", byte " + std::to_string(offset) + " of an allocation of " +
         std::to_string(bytes) + (offset < bytes ? "" : ": beyond its end");
}

// Says who touched what, and leaves the rest to the handler that was there before.
struct sigaction other_handler;
void on_fault(int, siginfo_t* info, void*) {
  const std::string who = running.empty() ? "the host, with no work running," : running;
  const std::string text = "stand-in: " + who + " touched " + describe(info->si_addr) + "\n";
  if (write(STDERR_FILENO, text.data(), text.size())) sigaction(SIGSEGV, &other_handler, nullptr);
}

}  // namespace

std::string running;

void reserve_memory(int device) {
  void* range =
      mmap(nullptr, kReserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (range == MAP_FAILED) abort();
  memories[device].base = memories[device].next = number(range);
  memories[device].opened = setting("OPEN", 0) ? 1 : 0;
  if (device > 0) return;
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, &other_handler);
}

int owner(const void* address) {
  for (int device = 0; device < devices(); device++) {
    const uintptr_t base = memories[device].base;
    if (base && number(address) - base < kReserved) return device;
  }
  return -1;
}

bool just_beyond(const void* address) {
  Memory& memory = memories[owner(address)];
  const auto found = memory.before(number(address));
  return found != memory.allocated.end() && number(address) - found->first - found->second < kPage;
}

cudaError_t check_range(const void* address, size_t bytes, int device, const std::string& what) {
  const int actual = owner(address);
  if (actual >= 0 && (device < 0 || device == actual)) {
    const auto found = memories[actual].before(number(address));
    if (found != memories[actual].allocated.end() &&
        number(address) + bytes <= found->first + found->second)
      return cudaSuccess;
  }
  return fault(cudaErrorInvalidValue, what + ": " + std::to_string(bytes) + " bytes at " +
                                          describe(address) + (device < 0 ? "" : ", for device ") +
                                          (device < 0 ? "" : std::to_string(device)));
}

Access::Access(std::set<int> devices) : devices_(std::move(devices)) {
  for (int device : devices_) {
    if (device >= 0 && memories[device].opened++ == 0)
      memories[device].protect(PROT_READ | PROT_WRITE);
  }
}
Access::~Access() {
  for (int device : devices_) {
    if (device >= 0 && --memories[device].opened == 0) memories[device].protect(PROT_NONE);
  }
}

}  // namespace standin

using namespace standin;

extern "C" {

cudaError_t cudaMalloc(void** out, size_t bytes) {
  Lock lock(everything);
  initialise();
  *out = nullptr;
  if (!bytes) return cudaSuccess;
  RETURN_IF(refused_in_capture("cudaMalloc"));
  RETURN_IF(state(current_device));
  RETURN_IF(planned("cudaMalloc"));
  Memory& memory = memories[current_device];
  const size_t size = pages(bytes);
  if (memory.used + size > static_cast<size_t>(total_bytes(current_device)))
    return report(cudaErrorMemoryAllocation, "out of memory");
  Memory::protect(memory.next, size, PROT_READ | PROT_WRITE);
  memset(reinterpret_cast<void*>(memory.next), 0xff, size);  // NaN
  if (!memory.opened) Memory::protect(memory.next, size, PROT_NONE);
  // At the end of its pages, as far as an alignment of 16 bytes allows: what follows is a gap.
  const uintptr_t address = memory.next + (size - bytes) / 16 * 16;
  *out = reinterpret_cast<void*>(address);
  memory.allocated[address] = bytes;
  memory.used += size;
  memory.next += size + kPage;
  return cudaSuccess;
}

cudaError_t cudaFree(void* address) {
  Lock lock(everything);
  initialise();
  if (!address) return cudaSuccess;
  RETURN_IF(refused_in_capture("cudaFree"));
  const int device = owner(address);
  if (device < 0) return fault(cudaErrorInvalidValue, "cudaFree: " + describe(address));
  Memory& memory = memories[device];
  const auto found = memory.allocated.find(number(address));
  if (found == memory.allocated.end())
    return fault(cudaErrorInvalidValue, "cudaFree: " + describe(address));
  finish_device(device);
  madvise(reinterpret_cast<void*>(found->first / kPage * kPage), pages(found->second),
          MADV_DONTNEED);
  Memory::protect(found->first, found->second, PROT_NONE);
  memory.used -= pages(found->second);
  memory.allocated.erase(found);
  return state(device);
}

cudaError_t cudaMemGetInfo(size_t* left, size_t* total) {
  Lock lock(everything);
  initialise();
  *total = total_bytes(current_device);
  *left = *total - memories[current_device].used;
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** out, size_t bytes, unsigned) {
  Lock lock(everything);
  RETURN_IF(refused_in_capture("cudaHostAlloc"));
  *out = aligned_alloc(kPage, pages(bytes));
  pinned[number(*out)] = bytes;
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* address) {
  Lock lock(everything);
  for (int device = 0; device < devices(); device++) finish_device(device);
  if (!pinned.erase(number(address)))
    return fault(cudaErrorInvalidValue, "cudaFreeHost: " + hex(address) + " is not pinned");
  free(address);
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* out, const void* address) {
  Lock lock(everything);
  initialise();
  const int device = owner(address);
  *out = {};
  out->device = device;
  out->type = device >= 0          ? cudaMemoryTypeDevice
              : is_pinned(address) ? cudaMemoryTypeHost
                                   : cudaMemoryTypeUnregistered;
  (device >= 0 ? out->devicePointer : out->hostPointer) = const_cast<void*>(address);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t handle) {
  Lock lock(everything);
  Stream* stream;
  RETURN_IF(target(handle, "cudaMemcpyAsync", &stream, true));
  if (!bytes) return cudaSuccess;
  const int to_device = owner(to), from_device = owner(from);
  if (to_device >= 0) RETURN_IF(check_range(to, bytes, -1, "cudaMemcpyAsync to"));
  if (from_device >= 0) RETURN_IF(check_range(from, bytes, -1, "cudaMemcpyAsync from"));
  const bool to_host = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyHostToHost;
  const bool from_host = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyHostToHost;
  if (kind != cudaMemcpyDefault && (to_host != (to_device < 0) || from_host != (from_device < 0)))
    return fault(cudaErrorInvalidValue, "cudaMemcpyAsync: kind " + std::to_string(kind) + " from " +
                                            describe(from) + " to " + describe(to));
  // Pageable host memory is read at once, and written before the call returns.
  const bool reads_now = from_device < 0 && !is_pinned(from);
  const bool waits = to_device < 0 && !is_pinned(to);
  if (stream->capture && (reads_now || waits)) {
    stream->capture->broken = "a copy of pageable memory during a capture";
    return fault(cudaErrorStreamCaptureUnsupported, stream->capture->broken);
  }
  std::shared_ptr<std::vector<char>> staged;
  if (reads_now) {
    const auto* begin = static_cast<const char*>(from);
    staged = std::make_shared<std::vector<char>>(begin, begin + bytes);
  }
  enqueue(*stream, {"cudaMemcpyAsync", [=] {
                      const Access access({to_device, from_device});
                      memcpy(to, staged ? staged->data() : from, bytes);
                    }});
  if (waits) finish(*stream);
  return state(stream->device);
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  Lock lock(everything);
  RETURN_IF(refused_in_capture("cudaMemcpy"));
  RETURN_IF(cudaMemcpyAsync(to, from, bytes, kind, nullptr));
  finish(default_stream(current_device));
  return state(current_device);
}

cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes,
                                cudaStream_t stream) {
  return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream);
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t handle) {
  Lock lock(everything);
  Stream* stream;
  RETURN_IF(target(handle, "cudaMemsetAsync", &stream));
  RETURN_IF(planned("cudaMemsetAsync"));
  const int device = stream->device;
  RETURN_IF(check_range(to, bytes, device, "cudaMemsetAsync"));
  log_launch(*stream, "memset " + std::to_string(bytes));
  enqueue(*stream, {"cudaMemsetAsync", [=] {
                      if (check_range(to, bytes, device, "cudaMemsetAsync, when it runs"))
                        throw std::runtime_error(text_of_last_error());
                      memset(to, value, bytes);
                    }});
  return state(device);
}

cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  return cudaMemsetAsync(to, value, bytes, nullptr);
}

}  // extern "C"
