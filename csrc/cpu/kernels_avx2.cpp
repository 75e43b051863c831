// The kernels for x86-64 processors with AVX2. Flags: -mavx2 -mfma -mf16c
#ifdef __x86_64__
#if !defined(__AVX2__) || !defined(__FMA__) || !defined(__F16C__) || defined(__AVX512F__)
#error "kernels_avx2.cpp must be compiled with exactly -mavx2 -mfma -mf16c"
#endif

#include "kernels.h"
#include "stages/backward.h"
#include "stages/forward.h"

namespace seblock::cpu {

Kernels avx2_kernels() { return {run_forward, run_backward}; }

}  // namespace seblock::cpu
#endif
