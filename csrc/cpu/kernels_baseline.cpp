// The kernels for any x86-64 or aarch64 processor. No extra flags.
#include "kernels.h"
#include "stages/backward.h"
#include "stages/forward.h"

namespace seblock::cpu {

Kernels baseline_kernels() { return {run_forward, run_backward}; }

}  // namespace seblock::cpu
