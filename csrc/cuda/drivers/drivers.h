// The drivers: three ways of calling the stages. Each executes its plan; a new one is a file beside
// these, a strategy in plan.h, and its two lines here.
#pragma once

#include "plan.h"
#include "se_types.h"

namespace seblock::cuda {

void split(const ForwardParams& params, const Plan& plan, void* stream);
void split(const BackwardParams& params, const Plan& plan, void* stream);

void stream(const ForwardParams& params, const Plan& plan, void* stream);
void stream(const BackwardParams& params, const Plan& plan, void* stream);

void resident(const ForwardParams& params, const Plan& plan, void* stream);
void resident(const BackwardParams& params, const Plan& plan, void* stream);

// The weight gradients, which all drivers leave to a launch of their own.
void gradients(const BackwardParams& params, const Plan& plan, void* stream);

// Of the stream kernels that a multiprocessor of the current device holds, the fewest.
int stream_blocks();

}  // namespace seblock::cuda
