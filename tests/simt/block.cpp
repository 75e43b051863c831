// What happens when a block starts and ends, and how the state of its threads reads in a report.
#include "block.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

namespace simt {
namespace {

// In the order of At.
constexpr const char* kPlaces[] = {"can run", "waits in spin", "waits at sync_threads",
                                   "waits at shuffle_xor", "has exited"};

std::vector<std::unique_ptr<Fiber>>& idle_fibers() {
  thread_local std::vector<std::unique_ptr<Fiber>> fibers;
  return fibers;
}

}  // namespace

Block::Block(unsigned index, const Launch& launch, void (*thread_main)(void*))
    : index(index), group{0, launch.threads, 0}, threads(launch.threads) {
  for (unsigned first = 0; first < launch.threads; first += kWarpThreads) {
    Warp warp{{first, std::min(kWarpThreads, launch.threads - first), 0}, {}, {}};
    std::memset(warp.slots, 0xff, sizeof warp.slots);
    warps.push_back(warp);
  }
  for (unsigned i = 0; i < launch.threads; i++) {
    if (idle_fibers().empty()) idle_fibers().push_back(std::make_unique<Fiber>());
    threads[i] = {this, i, At::ready, std::move(idle_fibers().back())};
    idle_fibers().pop_back();
    threads[i].fiber->start(thread_main, &threads[i]);
  }
  // A new allocation of the exact size for each block: AddressSanitizer sees what lies beyond it,
  // and pointers that outlive it.
  shared = ::operator new(launch.shared_bytes, std::align_val_t{kSharedAlignment});
  std::memset(shared, 0xff, launch.shared_bytes);
  if (recording()) trace = std::make_unique<BlockTrace>(*recording(), launch, index, shared);
}

Block::~Block() {
  for (Thread& thread : threads) idle_fibers().push_back(std::move(thread.fiber));
  ::operator delete(shared, std::align_val_t{kSharedAlignment});
}

std::string describe(const Block& block, const Group& group) {
  std::string text;
  for (int place = 0; place <= static_cast<int>(At::exited); place++) {
    unsigned count = 0, first = 0;
    for (unsigned i = group.first + group.size; i-- > group.first;) {
      if (block.threads[i].at != static_cast<At>(place)) continue;
      first = i;
      count++;
    }
    if (count == 0) continue;
    text += (text.empty() ? "thread " : ", thread ") + std::to_string(first) + " " + kPlaces[place];
    if (count > 1) text += " (and " + std::to_string(count - 1) + " more)";
  }
  return text;
}

}  // namespace simt
