// The kernels for x86-64 processors with AVX-512.
// Flags: -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c -mprefer-vector-width=512
#ifdef __x86_64__
#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512DQ__) || \
    !defined(__AVX512VL__)
#error "kernels_avx512.cpp must be compiled with -mavx512f -mavx512bw -mavx512dq -mavx512vl"
#endif

#include "kernels.h"
#include "stages/backward.h"
#include "stages/forward.h"

namespace seblock::cpu {

Kernels avx512_kernels() { return {run_forward, run_backward}; }

}  // namespace seblock::cpu
#endif
