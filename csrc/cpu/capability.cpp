// The run-time choice of the instruction set, and the entry points that ops.cpp calls.
#include <cstdlib>
#include <cstring>

#include "cpu.h"
#include "kernels.h"
#include "workspace.h"

namespace seblock::cpu {
namespace {

struct Capability {
  const char* name;
  Kernels kernels;
};

#ifdef __x86_64__
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

Capability choose() {
#ifdef __x86_64__
  // A name that is not known lowers nothing.
  const char* wanted = std::getenv("SEBLOCK_CPU_CAPABILITY");
  const bool only_baseline = wanted && std::strcmp(wanted, "baseline") == 0;
  const bool at_most_avx2 = only_baseline || (wanted && std::strcmp(wanted, "avx2") == 0);
  if (has_avx512() && !at_most_avx2) return {"avx512", avx512_kernels()};
  if (has_avx2() && !only_baseline) return {"avx2", avx2_kernels()};
#endif
  return {"baseline", baseline_kernels()};
}

const Capability& chosen() {
  static const Capability capability = choose();
  return capability;
}

}  // namespace

int64_t forward_workspace_bytes(const Problem& problem) {
  return ForwardWorkspace(problem, nullptr).bytes;
}

int64_t backward_workspace_bytes(const Problem& problem) {
  return BackwardWorkspace(problem, nullptr).bytes;
}

void forward(const ForwardParams& params, const ThreadPool& pool) {
  chosen().kernels.forward(params, pool);
}

void backward(const BackwardParams& params, const ThreadPool& pool) {
  chosen().kernels.backward(params, pool);
}

const char* capability() { return chosen().name; }

}  // namespace seblock::cpu
