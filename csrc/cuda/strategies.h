// The launchers of each strategy, and of the weight gradients, which all share.
#pragma once

#include "launch.h"

namespace seblock::cuda {

void forward_split(const ForwardParams& params, const SePlan& plan, void* stream);
void backward_split(const BackwardParams& params, const SePlan& plan, void* stream);

// Strategies stream and resident.
void forward_stream(const ForwardParams& params, const SePlan& plan, void* stream);
void backward_stream(const BackwardParams& params, const SePlan& plan, void* stream);

void weight_grad(const BackwardParams& params, void* stream);

}  // namespace seblock::cuda
