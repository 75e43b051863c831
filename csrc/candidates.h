// What a tuner tries: plans of one direction of a problem that may be faster than the rule's.
#pragma once

#include <vector>

#include "plan.h"

namespace seblock {

constexpr size_t kMostCandidates = 12;

// The rule's own plan first, then others, none twice: resident; stream with other lags and fewer
// blocks; split with other groups. Left out is what cannot win: a stream whose second read lies
// farther away than the L2 holds, a split that reads more of weights than of x.
std::vector<Plan> candidates(const Problem& problem, Direction direction, bool aligned,
                             const DeviceLimits& limits);

}  // namespace seblock
