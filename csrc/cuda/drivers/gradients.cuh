// The weight gradients: a launch of their own behind every driver. Executes the plan.
#pragma once

#include "drivers.h"
#include "passes.cuh"

namespace seblock::cuda {

template <typename Params>
SEBLOCK_KERNEL_OF(2)
gradients_kernel(Params p) {
  await_launch_before();
  weight_gradients(p, block_index());
}

}  // namespace seblock::cuda
