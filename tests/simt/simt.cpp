// The scheduler of the SIMT harness: who runs next, who meets whom, and what went wrong.
#include "simt.h"

#include <cstring>
#include <list>
#include <numeric>
#include <optional>
#include <random>

#include "fiber.h"
#include "recording.h"

namespace simt {
namespace {

// Where a thread is.
using Place = const char*;
constexpr Place kReady = "ready", kSpin = "in spin", kSyncThreads = "at sync_threads",
                kShuffleXor = "at shuffle_xor", kExited = "exited";

struct Cancelled {};  // thrown through the frames of a thread whose launch has failed

struct Thread {
  struct Block* block;
  unsigned index;
  std::unique_ptr<Fiber> fiber;
  Place place = kReady;
  unsigned shuffles = 0;
  uint64_t sent[2] = {};  // in the last two of them
};

thread_local std::unique_ptr<Recording> recording;
thread_local std::vector<std::unique_ptr<Fiber>> idle_fibers;
thread_local struct Grid* running = nullptr;

void thread_main();

struct Block {
  Block(unsigned index, const Launch& launch)
      : index(index), shared(new std::byte[launch.shared_bytes]) {
    std::memset(shared.get(), 0xff, launch.shared_bytes);
    for (unsigned i = 0; i < launch.threads; i++) {
      if (idle_fibers.empty()) idle_fibers.push_back(std::make_unique<Fiber>(thread_main));
      threads.push_back({this, i, std::move(idle_fibers.back())});
      idle_fibers.pop_back();
    }
    if (recording) trace = recording->start_block(index, shared.get(), launch.shared_bytes);
  }

  ~Block() {
    if (trace) recording->end_block(*trace, shared.get());
    for (Thread& thread : threads) idle_fibers.push_back(std::move(thread.fiber));
  }

  // True if all of these threads are there: they can go on.
  bool leave(Place place, size_t first, size_t count) {
    const auto begin = threads.begin() + first,
               end = begin + std::min(count, threads.size() - first);
    if (std::any_of(begin, end, [=](Thread& t) { return t.place != place; })) return false;
    std::for_each(begin, end, [](Thread& t) { t.place = kReady; });
    return true;
  }

  // Lets those go on who have all met.
  void release() {
    if (leave(kSyncThreads, 0, threads.size()) && trace) recording->barrier(*trace);
    for (size_t warp = 0; warp * kWarpThreads < threads.size(); warp++) {
      if (!leave(kShuffleXor, warp * kWarpThreads, kWarpThreads)) continue;
      if (trace) recording->lanes_met(trace->warps[warp]);
    }
  }

  const unsigned index;
  const std::unique_ptr<std::byte[]> shared;
  std::vector<Thread> threads;
  std::optional<Trace> trace;  // while something is recorded
};

struct Grid {
  const Launch& launch;
  const std::function<void()>& body;
  const Schedule schedule = simt::schedule;
  std::mt19937_64 random{schedule.seed};
  std::vector<unsigned> waiting = std::vector<unsigned>(launch.blocks);  // the next one last
  std::list<Block> blocks = {};
  Thread* current = nullptr;
  uint64_t laggards = random();  // says who is one
  unsigned idle_rounds = 0;      // in a row, in which all threads only spun
  std::string failure = {};      // the first; ends the launch

  ~Grid() { running = nullptr; }

  void run() {
    running = this;
    std::iota(waiting.rbegin(), waiting.rend(), 0);
    if (schedule.seed) std::shuffle(waiting.begin(), waiting.end(), random);
    while (!waiting.empty() || !blocks.empty()) {
      while (!waiting.empty() && blocks.size() < std::max(schedule.resident, 1u)) {
        blocks.emplace_back(waiting.back(), launch);
        waiting.pop_back();
      }
      run_round();
      blocks.remove_if([](Block& block) { return block.leave(kExited, 0, block.threads.size()); });
    }
    if (!failure.empty()) throw std::runtime_error(failure);
  }

  // Resumes every thread that can run or, with a seed, some of them.
  void run_round() {
    if (idle_rounds++ > 0) laggards = random();
    std::vector<Thread*> runnable;
    for (Block& block : blocks) {
      block.release();
      for (Thread& thread : block.threads) {
        if (can_run(thread) && !lags(thread)) runnable.push_back(&thread);
      }
    }
    const bool nobody = runnable.empty() && idle_rounds > 1;  // not even laggards
    if (nobody) fail("divergence:" + places());
    if (idle_rounds > schedule.spin_rounds) fail("stuck wait:" + places());
    if (schedule.seed && !runnable.empty()) {
      std::shuffle(runnable.begin(), runnable.end(), random);
      runnable.resize(1 + random() % runnable.size());
    }
    for (Thread* thread : runnable) {
      const bool spun = thread->place == kSpin;
      thread->place = kReady;
      current = thread;
      thread->fiber->resume();
      if (!spun || thread->place != kSpin) idle_rounds = 0;
    }
  }

  // After a failure every thread, to unwind its frames.
  bool can_run(const Thread& thread) const {
    if (failure.empty()) return thread.place == kReady || thread.place == kSpin;
    return thread.place != kExited;
  }

  // With a seed, about half of the threads, or of their groups of 2, 4, ... 1024, stay behind until
  // a round in which nobody gets on; then others are drawn.
  bool lags(const Thread& thread) const {
    const uint64_t number = uint64_t{thread.block->index} * kMaxBlockThreads + thread.index;
    const uint64_t hash = (number >> laggards % 11 ^ laggards) * 0x9e3779b97f4a7c15;
    return schedule.seed && idle_rounds == 1 && hash >> 63;
  }

  // Called by the current thread.
  void wait(Place place) {
    current->place = place;
    if (failure.empty()) current->fiber->suspend();
    if (!failure.empty()) throw Cancelled();
  }

  void fail(const std::string& what) {
    if (failure.empty()) failure = text(launch.kernel, ": ", what);
    waiting.clear();
  }

  void fail_thread(const char* what) {
    fail(text("block ", current->block->index, ": thread ", current->index, ": ", what));
  }

  // " block 3: from thread 0 at sync_threads; from thread 32 exited; 0 blocks not started"
  std::string places() const {
    std::string all;
    for (const Block& block : blocks) {
      all += text(" block ", block.index, ":");
      for (const Thread& thread : block.threads) {
        if (thread.index > 0 && thread.place == block.threads[thread.index - 1].place) continue;
        all += text(" from thread ", thread.index, " ", thread.place, ";");
      }
    }
    return text(all, " ", waiting.size(), " blocks not started");
  }
};

void thread_main() {
  Grid& grid = *running;
  try {
    if (grid.failure.empty()) grid.body();
  } catch (const std::exception& exception) {
    grid.fail_thread(exception.what());
  } catch (...) {  // or Cancelled: then the first failure stands
    grid.fail_thread("an exception that is not a std::exception");
  }
  grid.current->place = kExited;
}

Grid& grid() {
  if (!running) throw std::logic_error("simt: called outside the body of a launch");
  return *running;
}

}  // namespace

void launch(const Launch& launch, const std::function<void()>& body) {
  if (running || launch.blocks == 0 || launch.threads == 0 || launch.threads > kMaxBlockThreads) {
    throw std::runtime_error(text(launch.kernel, ": launch of ", launch.blocks, " blocks of ",
                                  launch.threads, " threads", running ? ", by a thread" : ""));
  }
  if (recording) recording->start_launch(launch);
  Grid{launch, body}.run();
}

unsigned thread_index() { return grid().current->index; }
unsigned block_index() { return grid().current->block->index; }
unsigned grid_blocks() { return grid().launch.blocks; }
void* shared_memory() { return grid().current->block->shared.get(); }
void sync_threads() { grid().wait(kSyncThreads); }
void spin() { grid().wait(kSpin); }

// Two slots in turn: a lane that has left a shuffle fills the other one while a slow lane still
// reads. It gets no further ahead, for the next shuffle waits for the slow lane too.
void shuffle_xor_bytes(void* value, size_t bytes, unsigned lane_mask) {
  Thread& self = *grid().current;
  const std::vector<Thread>& threads = self.block->threads;
  const unsigned slot = self.shuffles++ % 2, other = self.index ^ lane_mask;
  std::memcpy(&self.sent[slot], value, bytes);
  grid().wait(kShuffleXor);
  std::memset(value, 0xff, bytes);
  if (other < threads.size()) std::memcpy(value, &threads[other].sent[slot], bytes);
}

void access(const void* address, size_t bytes, Access access) {
  const Thread& self = *grid().current;
  if (!self.block->trace) return;
  recording->access(*self.block->trace, self.index, reinterpret_cast<uintptr_t>(address), bytes,
                    access, __builtin_return_address(0));
}

void start_recording(const std::vector<Tensor>& tensors) {
  recording = std::make_unique<Recording>(tensors);
}

std::vector<LaunchTraffic> stop_recording() {
  if (!recording) throw std::logic_error("simt: nothing is being recorded");
  return std::exchange(recording, nullptr)->launches;
}

}  // namespace simt
