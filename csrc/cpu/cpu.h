// The CPU kernels as ops.cpp calls them. No torch: the thread pool comes in as a function pointer.
#pragma once

#include "se_types.h"

namespace seblock::cpu {

// A parallel loop over [begin, end) in pieces of at least `grain`; ops.cpp hands in torch's own
// pool.
struct ThreadPool {
  using Body = void (*)(int64_t begin, int64_t end, void* context);
  int threads;
  void (*parallel_for)(int64_t begin, int64_t end, int64_t grain, Body body, void* context);
};

int64_t forward_workspace_bytes(const Problem& problem);
int64_t backward_workspace_bytes(const Problem& problem);

void forward(const ForwardParams& params, const ThreadPool& pool);
void backward(const BackwardParams& params, const ThreadPool& pool);

// The instruction set in use: "avx512", "avx2" or "baseline". The environment variable
// SEBLOCK_CPU_CAPABILITY lowers it (never raises it above what the processor has).
const char* capability();

}  // namespace seblock::cpu
