// The kernels that the stand-in can run, as the library STANDIN_KERNELS exports them.
#pragma once

#include <cstddef>

struct StandinKernels {
  size_t (*argument_bytes)(const char* name);  // of its one argument; 0: no such kernel
  void (*clear_padding)(const char* name, void* argument);  // which may hold stale addresses
  void (*run)(const char* name, unsigned blocks, unsigned threads, size_t shared_bytes,
              const void* argument);
};
