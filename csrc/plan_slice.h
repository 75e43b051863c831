// The parts of plan.cpp that strategies stream and resident need. Internal to the plan.
#pragma once

#include "plan.h"

namespace seblock {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int64_t kMaxResidentChannels = 1 << 14;

// Each fills `slice` and returns null, or says why the strategy cannot run the problem.
const char* slice_for_stream(const Problem& problem, bool aligned, const DeviceLimits& limits,
                             SlicePlan& slice);
const char* slice_for_resident(const Problem& problem, bool aligned, const DeviceLimits& limits,
                               SlicePlan& slice);

// Traffic and workspaces, from plan.strategy and plan.slice.
void state_slice_traffic(const Problem& problem, SePlan& plan);

}  // namespace seblock
