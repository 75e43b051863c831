// Groups the accesses of a block's threads into requests of warps; finds races.
#include "trace.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace simt {
namespace {

constexpr size_t kSharedCell = 2;  // bytes; the smallest type in shared memory

}  // namespace

void join(Clock& clock, const Clock& other) {
  for (const auto& [block, barrier] : other) clock[block] = std::max(clock[block], barrier);
}

BlockTrace::BlockTrace(Recording& recording, const Launch& launch, unsigned index,
                       const void* shared)
    : recording_(recording),
      index_(index),
      shared_(reinterpret_cast<uintptr_t>(shared)),
      shared_bytes_(launch.shared_bytes),
      warps_((launch.threads + kWarpThreads - 1) / kWarpThreads),
      cells_((launch.shared_bytes + kSharedCell - 1) / kSharedCell) {}

void BlockTrace::global(unsigned thread, const void* address, size_t bytes, Access access,
                        const void* caller) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  add(thread, recording_.check(at, bytes, access, *this, thread), at, bytes, access, caller);
}

bool BlockTrace::follows(const Writer& before, unsigned thread) const {
  if (before.block == index_) return before.thread == thread || before.barrier < barriers_;
  const auto known = [&](const Clock& clock) {
    const auto found = clock.find(before.block);
    return found != clock.end() && before.barrier < found->second;
  };
  const auto learnt = learnt_.find(thread);
  return known(clock_) || (learnt != learnt_.end() && known(learnt->second));
}

void BlockTrace::released(unsigned thread, const void* flag) {
  Clock& clock = recording_.flag(flag);
  join(clock, clock_);
  join(clock, learnt_[thread]);
  join(clock, {{index_, barriers_}});
}

void BlockTrace::acquired(unsigned thread, const void* flag) {
  join(learnt_[thread], recording_.flag(flag));
}

void BlockTrace::shared(unsigned thread, const void* address, size_t bytes, Access access,
                        const void* caller) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  const auto offset = static_cast<int64_t>(at - shared_);
  const auto fail = [&](const std::string& what) {
    throw std::runtime_error((access == Access::read ? "reads " : "writes ") +
                             std::to_string(bytes) + " bytes at byte " + std::to_string(offset) +
                             " of shared memory" + what);
  };
  if (offset < 0 || offset + bytes > shared_bytes_) {
    fail(", which has " + std::to_string(shared_bytes_) + " bytes");
  }
  if (at % bytes || bytes % kSharedCell) fail(": misaligned");
  for (size_t i = offset / kSharedCell; i < (offset + bytes) / kSharedCell; i++) {
    SharedCell& cell = cells_[i];
    if (races(cell.written, thread) || (access == Access::write && races(cell.read, thread))) {
      const Stamp& other = races(cell.written, thread) ? cell.written : cell.read;
      fail(", which thread " + std::to_string(other.thread) +
           (&other == &cell.written ? " wrote" : " read") + " since the last barrier");
    }
    if (access == Access::read && cell.written.barrier == 0) fail(", which nobody has written");
    stamp(access == Access::read ? cell.read : cell.written, thread);
  }
  add(thread, recording_.shared_tensor(), at, bytes, access, caller);
}

// True if `thread` is not ordered after the accesses of `before`.
bool BlockTrace::races(const Stamp& before, unsigned thread) const {
  return before.barrier == barriers_ && (before.several || before.thread != thread);
}

void BlockTrace::stamp(Stamp& stamp, unsigned thread) const {
  stamp = {barriers_, thread, races(stamp, thread)};
}

void BlockTrace::add(unsigned thread, unsigned tensor, uintptr_t address, size_t bytes,
                     Access access, const void* caller) {
  std::vector<Site>& sites = warps_[thread / kWarpThreads];
  const Kind kind{access, static_cast<unsigned>(bytes), tensor};
  const unsigned index = recording_.site_of(caller, kind);
  if (index >= sites.size()) sites.resize(index + 1);
  Site& site = sites[index];
  const unsigned turn = site.taken[thread % kWarpThreads]++;
  if (turn == site.requests.size()) site.requests.emplace_back();
  Request& request = site.requests[turn];
  if (turn == site.used) {
    site.used++;
    site.kind = kind;
    request.lanes = 0;
  }
  request.address[request.lanes++] = address;
}

void BlockTrace::threads_met() {
  barriers_++;
  for (const auto& [thread, clock] : learnt_) join(clock_, clock);
  learnt_.clear();
  for (unsigned warp = 0; warp < warps_.size(); warp++) warp_met(warp);
}

void BlockTrace::warp_met(unsigned warp) {
  for (Site& site : warps_[warp]) {
    if (site.used == 0) continue;
    for (unsigned i = 0; i < site.used; i++) recording_.count(site.kind, site.requests[i]);
    std::fill_n(site.taken, kWarpThreads, 0);
    site.used = 0;
  }
}

}  // namespace simt
