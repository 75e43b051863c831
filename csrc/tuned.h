// Plans that were tuned: what runs otherwise than the rule has it, by device and problem.
//
// Looked up at every call. Any thread may call any of these; a call that is under way keeps what it
// has found.
#pragma once

#include "plan.h"

namespace seblock {

struct Tuned {
  Forced forced = {};
  bool shipped = false;  // with the library, rather than tuned here
};

// From now on. A device is known by its capability, multiprocessors and L2 bytes.
void use_plan(const DeviceLimits& device, const Problem& problem, Direction direction, bool aligned,
              const Tuned& tuned);
void forget_plans();

// What was tuned for this layer with the nearest batch, within a factor of two; else nothing is
// forced.
Tuned tuned_plan(const DeviceLimits& device, const Problem& problem, Direction direction,
                 bool aligned);

}  // namespace seblock
