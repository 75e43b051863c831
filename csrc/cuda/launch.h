// The CUDA side as ops.cpp and the SIMT harness call it: execute the plan on a stream, or throw.
#pragma once

#include <string>

#include "plan.h"
#include "se_types.h"

namespace seblock::cuda {

// The launchers behind forward() and backward() take no decision: everything they need is in the
// plan.
void forward(const ForwardParams& params, const Plan& plan, void* stream);
void backward(const BackwardParams& params, const Plan& plan, void* stream);

// What the plan needs to know of a device: asked once.
const DeviceLimits& limits_of(int device);

// Raises, naming both, if the kernels were not built for this device or its driver is too old.
void require_usable(int device);

// Why the driver can run no kernel of ours, on any device; empty if it can. Makes no context.
std::string driver_problem();

}  // namespace seblock::cuda
