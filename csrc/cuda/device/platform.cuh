// The hardware as kernels see it: threads, barriers, shuffles, shared memory, launches.
// Two back ends, one interface: the GPU, and the SIMT harness that runs the same source on a CPU.
#pragma once

#ifdef SEBLOCK_SIMT
#include "platform_simt.cuh"
#else
#include "platform_gpu.cuh"
#endif
