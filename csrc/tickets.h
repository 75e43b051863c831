// Strategy stream: what the blocks of one launch do, in the order in which they take tickets.
//
// Step i holds the squeeze tasks of sample i and the scale tasks of sample i - lag, in turns. So
// what a scale task waits for, the squeezes of its sample, has lower tickets, and a block that
// waits never holds up what it waits for.
#pragma once

#include <cstdint>

#include "division.h"

namespace seblock {

struct Ticket {
  bool scales;  // or squeezes
  int sample;
  int task;  // of the sample
};

class Tickets {
 public:
  // squeezes, scales: tasks of a sample. 1 <= lag <= samples.
  Tickets(int64_t samples, int64_t lag, int64_t squeezes, int64_t scales)
      : lag_(static_cast<uint32_t>(lag)),
        segments_{{squeezes, 0}, {squeezes, scales}, {0, scales}} {
    const int64_t steps[] = {lag, samples - lag, lag};
    for (int i = 0; i < kSegments; ++i) {
      segments_[i].first_ticket = total_;
      segments_[i].first_step = i == 0 ? 0 : segments_[i - 1].first_step + uint32_t(steps[i - 1]);
      total_ += uint32_t(steps[i] * (segments_[i].squeezes + segments_[i].scales));
    }
  }

  SEBLOCK_HOST_DEVICE uint32_t total() const { return total_; }

  SEBLOCK_HOST_DEVICE Ticket decode(uint32_t ticket) const {
    const Segment& segment =
        segments_[(ticket >= segments_[1].first_ticket) + (ticket >= segments_[2].first_ticket)];
    uint32_t nth = ticket - segment.first_ticket;
    const uint32_t steps = segment.per_step.divide(nth);
    nth -= steps * (segment.squeezes + segment.scales);
    const uint32_t step = segment.first_step + steps;
    // In turns while there are both, then the rest of the one that has more.
    const uint32_t both = segment.squeezes < segment.scales ? segment.squeezes : segment.scales;
    const bool turns = nth < 2 * both;
    const bool scales = turns ? nth % 2 : segment.scales > segment.squeezes;
    const uint32_t task = turns ? nth / 2 : nth - both;
    return {scales, static_cast<int>(scales ? step - lag_ : step), static_cast<int>(task)};
  }

 private:
  struct Segment {  // steps that hold the same numbers of tasks
    uint32_t squeezes, scales, first_ticket = 0, first_step = 0;
    Divisor32 per_step;
    Segment(int64_t squeeze_tasks, int64_t scale_tasks)
        : squeezes(static_cast<uint32_t>(squeeze_tasks)),
          scales(static_cast<uint32_t>(scale_tasks)),
          per_step(squeeze_tasks + scale_tasks) {}
  };
  static constexpr int kSegments = 3;

  uint32_t lag_;
  Segment segments_[kSegments];
  uint32_t total_ = 0;
};

}  // namespace seblock
