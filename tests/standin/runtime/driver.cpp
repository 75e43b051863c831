// A stand-in for libcuda.so.1: as little as torch asks for. Declared here: only the names matter.
#include <cstdio>

namespace {
constexpr int kSuccess = 0, kNotSupported = 801;
}

extern "C" {
int cuInit(unsigned) { return kSuccess; }
int cuDeviceGet(int* out, int device) { return *out = device, kSuccess; }
int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) {
  return *flags = 0, *active = 1, kSuccess;
}
int cuGetErrorString(int, const char** text) { return *text = "of the stand-in", kSuccess; }

#define REFUSE(name) \
  int name() { return fprintf(stderr, "stand-in: %s is not in it\n", #name), kNotSupported; }
REFUSE(cuDeviceGetAttribute)
REFUSE(cuMemAddressReserve)
REFUSE(cuMemRelease)
REFUSE(cuMemMap)
REFUSE(cuMemAddressFree)
REFUSE(cuMemSetAccess)
REFUSE(cuMemUnmap)
REFUSE(cuMemCreate)
REFUSE(cuMemGetAllocationGranularity)
REFUSE(cuMemExportToShareableHandle)
REFUSE(cuMemImportFromShareableHandle)
REFUSE(cuMemRetainAllocationHandle)
REFUSE(cuMemGetAllocationPropertiesFromHandle)
REFUSE(cuMemsetD32Async)
REFUSE(cuStreamWriteValue32)
}
