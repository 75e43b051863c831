// What the environment says about plans, read at every call:
//   SEBLOCK_STRATEGY=split|stream|resident   this strategy and no other
//   SEBLOCK_LOG_PLAN=1                       every plan that is executed, on stderr
#pragma once

#include <cstdlib>
#include <iostream>
#include <optional>
#include <stdexcept>
#include <string_view>

#include "plan.h"

namespace seblock {

inline std::optional<Strategy> strategy_named(std::string_view name) {
  if (name.empty()) return {};
  for (int i = 0; i < 3; ++i) {
    if (name == kStrategyNames[i]) return static_cast<Strategy>(i);
  }
  throw std::invalid_argument("the strategy must be split, stream or resident, got " +
                              std::string(name));
}

inline Forced forced_by_environment() {
  const char* name = std::getenv("SEBLOCK_STRATEGY");
  return {strategy_named(name ? name : "")};
}

// 0: as the rule does.
inline Forced forced(std::string_view strategy, int group, int lag, int blocks) {
  const auto number = [](int value) { return value ? std::optional<int>(value) : std::nullopt; };
  return {strategy_named(strategy), number(group), number(lag), number(blocks)};
}

inline void log_if_asked(Direction direction, const Plan& plan) {
  const char* wanted = std::getenv("SEBLOCK_LOG_PLAN");
  if (wanted && *wanted && *wanted != '0') {
    std::cerr << "seblock_cuda: " << (direction == Direction::forward ? "forward: " : "backward: ")
              << to_string(plan) << "\n";
  }
}

}  // namespace seblock
