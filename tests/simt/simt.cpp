// The scheduler of the SIMT harness: who runs next, who meets whom, and what went wrong.
#include "simt.h"

#include <cstring>
#include <list>
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
  std::unique_ptr<Fiber> fiber = nullptr;
  Place place = kReady;
  unsigned shuffles = 0;
  uint64_t sent[2] = {};  // in the last two of them
};

thread_local std::unique_ptr<Recording> recording;
thread_local struct Grid* running = nullptr;

// Holds one block of the grid after the other: stacks are dear.
struct Block {
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

  unsigned index = 0;
  std::unique_ptr<std::byte[]> shared = nullptr;
  std::vector<Thread> threads = {};
  std::optional<Trace> trace = {};  // while something is recorded
};

struct Grid {
  const Launch& launch;
  const std::function<void()>& body;
  std::mt19937_64 random{schedule.seed};
  std::vector<unsigned> waiting = {};  // the next one last
  std::list<Block> blocks = std::list<Block>(std::max(schedule.resident, 1u));
  Fiber host = {};
  Thread* current = nullptr;
  uint64_t laggards = random();  // a bit for every 64th thread or group
  unsigned idle_rounds = 0;      // in a row, after which all that ran spin
  std::string failure = {};      // the first; ends the launch

  ~Grid() { running = nullptr; }

  void run() {
    running = this;
    for (unsigned block = launch.blocks; block > 0; block--) waiting.push_back(block - 1);
    if (schedule.seed) std::shuffle(waiting.begin(), waiting.end(), random);
    while (!blocks.empty()) {
      blocks.remove_if([this](Block& block) {
        return block.leave(kExited, 0, launch.threads) && !start_next(block);
      });
      run_round();
    }
    if (!failure.empty()) throw std::runtime_error(failure);
  }

  // Ends the block that has been here and starts the next one, if there is one.
  bool start_next(Block& block) {
    if (block.trace) recording->barrier(*block.trace);
    if (waiting.empty() || !failure.empty()) return false;
    block.index = waiting.back();
    waiting.pop_back();
    block.shared.reset(new std::byte[launch.shared_bytes]);
    std::memset(block.shared.get(), 0xff, launch.shared_bytes);
    if (recording) {
      block.trace = recording->start_block(block.index, block.shared.get(), launch.shared_bytes);
    }
    for (unsigned i = block.threads.size(); i < launch.threads; i++) {
      block.threads.push_back({&block, i, std::make_unique<Fiber>(thread_main)});
    }
    return true;
  }

  // Resumes every thread that can run or, with a seed, some of them.
  void run_round() {
    if (idle_rounds++ > 0) laggards = random();
    std::vector<Thread*> runnable;
    for (Block& block : blocks) {
      block.release();
      for (Thread& thread : block.threads) {
        if (goes_on(thread)) runnable.push_back(&thread);
      }
    }
    if (runnable.empty() && idle_rounds > 1) fail("divergence:" + places());
    if (idle_rounds > schedule.spin_rounds) fail("stuck wait:" + places());
    if (schedule.seed && !runnable.empty()) {
      std::shuffle(runnable.begin(), runnable.end(), random);
      runnable.resize(1 + random() % runnable.size());
    }
    for (Thread* thread : runnable) {
      current = thread;
      host.change_to(*thread->fiber);
      if (thread->place != kSpin) idle_rounds = 0;
    }
  }

  // With a seed, about half of the threads, or of their groups of 2, 4, ... 1024, stay behind until
  // a round in which nobody gets on; then others are drawn. After a failure everybody goes on, to
  // unwind the frames.
  bool goes_on(const Thread& thread) const {
    if (!failure.empty()) return thread.place != kExited;
    const unsigned group = (thread.block->index * kMaxBlockThreads + thread.index) >> laggards % 11;
    const bool lags = schedule.seed && idle_rounds == 1 && laggards >> group % 64 & 1;
    return !lags && (thread.place == kReady || thread.place == kSpin);
  }

  // Called by the current thread.
  void wait(Place place) {
    current->place = place;
    if (failure.empty()) current->fiber->change_to(host);
    if (!failure.empty()) throw Cancelled();
  }

  void fail(const std::string& what) {
    if (failure.empty()) failure = text(launch.kernel, ": ", what);
  }

  void fail_thread(const char* what) {
    fail(text("block ", current->block->index, ": thread ", current->index, ": ", what));
  }

  // What a fiber runs: the same thread of one block after the other.
  static void thread_main() {
    for (Grid& grid = *running;;) {
      try {
        if (grid.failure.empty()) grid.body();
      } catch (const std::exception& exception) {
        grid.fail_thread(exception.what());
      } catch (...) {  // or Cancelled: then the first failure stands
        grid.fail_thread("an exception that is not a std::exception");
      }
      grid.current->place = kExited;
      grid.current->fiber->change_to(grid.host, true);
    }
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
  recording->access(*self.block->trace, self.index, reinterpret_cast<uintptr_t>(address),
                    {__builtin_return_address(0), nullptr, bytes, access});
}

void start_recording(const std::vector<Tensor>& tensors) {
  recording = std::make_unique<Recording>(tensors);
}

std::vector<LaunchTraffic> stop_recording() {
  if (!recording) throw std::logic_error("simt: nothing is being recorded");
  return std::exchange(recording, nullptr)->launches;
}

}  // namespace simt
