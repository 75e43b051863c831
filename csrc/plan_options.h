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

inline std::optional<Strategy> strategy_from_environment() {
  const char* name = std::getenv("SEBLOCK_STRATEGY");
  return strategy_named(name ? name : "");
}

inline void log_if_asked(const SePlan& plan) {
  const char* wanted = std::getenv("SEBLOCK_LOG_PLAN");
  if (wanted && *wanted && *wanted != '0') std::cerr << "seblock_cuda: " << to_string(plan);
}

}  // namespace seblock
