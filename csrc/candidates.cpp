#include "candidates.h"

#include <algorithm>
#include <stdexcept>
#include <tuple>

namespace seblock {

std::vector<Plan> candidates(const Problem& problem, Direction direction, bool aligned,
                             const DeviceLimits& limits) {
  std::vector<Plan> found{plan(problem, direction, aligned, limits)};
  const auto numbers = [](const Plan& plan) {
    return std::tie(plan.strategy, plan.group, plan.lag, plan.blocks);
  };
  const auto make = [&](const Forced& forced) -> std::optional<Plan> {
    try {
      return plan(problem, direction, aligned, limits, forced);
    } catch (const std::invalid_argument&) {  // it cannot run the problem
      return {};
    }
  };
  const auto add = [&](const Forced& forced) {
    const std::optional<Plan> made = make(forced);
    if (!made || found.size() == kMostCandidates) return;
    if (made->traffic.window > limits.l2_bytes) return;
    const auto same = [&](const Plan& other) { return numbers(other) == numbers(*made); };
    if (std::none_of(found.begin(), found.end(), same)) found.push_back(*made);
  };

  add({Strategy::split});
  add({Strategy::resident});
  if (const std::optional<Plan> stream = make({Strategy::stream})) {
    for (const int blocks : {stream->blocks, limits.multiprocessors * (limits.stream_blocks - 1)}) {
      if (blocks < 1 || blocks > stream->blocks) continue;
      for (const int lag : {stream->lag, stream->lag / 2, stream->lag * 3 / 2})
        add({Strategy::stream, {}, lag, blocks});
    }
  }
  for (int group = kMostSamples; group >= 1; group /= 2) {
    if (group > 1 && group >= 2 * problem.shape.n) continue;  // as half of it
    const Forced forced{Strategy::split, group};
    const std::optional<Plan> made = make(forced);
    if (made && made->traffic.weights <= made->traffic.x) add(forced);
  }
  return found;
}

}  // namespace seblock
