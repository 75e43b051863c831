// One set of kernels, compiled once per instruction set; capability.cpp chooses among them at run
// time.
#pragma once

#include "cpu.h"

namespace seblock::cpu {

struct Kernels {
  void (*forward)(const ForwardParams& params, const ThreadPool& pool);
  void (*backward)(const BackwardParams& params, const ThreadPool& pool);
};

Kernels baseline_kernels();
#ifdef __x86_64__
Kernels avx2_kernels();
Kernels avx512_kernels();
#endif

}  // namespace seblock::cpu
