// The scheduler of the SIMT harness: who runs next, who meets whom, and what went wrong.
#include "simt.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <iterator>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "block.h"

namespace simt {
namespace {

// Thrown through the frames of a thread whose launch has failed.
struct Cancelled {};

class Grid {
 public:
  Grid(const Launch& launch, const std::function<void()>& body);
  ~Grid();

  void run();

  const Launch& launch() const { return launch_; }
  Thread& current() const { return *current_; }

  // Called by the current thread: waits for the others of the group; lets others run.
  void meet(Group& group, At place);
  void suspend();

 private:
  static void thread_main(void* thread);
  void draw_laggards();
  bool lags(const Thread& thread) const;
  bool resume_threads(Block& block);
  bool resume(Thread& thread);
  void cancel();

  std::runtime_error error(const Block& block, const std::string& text) const;
  std::runtime_error divergence(const Block& block) const;
  std::runtime_error stuck_wait() const;

  const Launch& launch_;
  const std::function<void()>& body_;
  const Schedule schedule_;
  std::mt19937_64 random_;
  std::vector<unsigned> waiting_;               // blocks not started, the next one last
  std::vector<std::unique_ptr<Block>> blocks_;  // resident
  std::vector<Thread*> runnable_;               // of the block whose turn it is
  Thread* current_ = nullptr;
  uint64_t laggard_salt_ = 0;
  unsigned laggard_unit_ = 1;
  std::exception_ptr failure_;
  bool cancelled_ = false;
  unsigned idle_rounds_ = 0;  // since a thread did more than spin
};

thread_local Grid* running = nullptr;

Grid& grid() {
  if (!running) throw std::logic_error("simt: called outside the body of a launch");
  return *running;
}

Grid::Grid(const Launch& launch, const std::function<void()>& body)
    : launch_(launch), body_(body), schedule_(schedule()), random_(schedule_.seed) {
  running = this;
  if (recording()) recording()->start_launch(launch);
}

Grid::~Grid() { running = nullptr; }

void Grid::run() {
  for (unsigned i = launch_.blocks; i-- > 0;) waiting_.push_back(i);
  if (schedule_.seed) {
    std::shuffle(waiting_.begin(), waiting_.end(), random_);
    draw_laggards();
  }
  try {
    while (!waiting_.empty() || !blocks_.empty()) {
      while (!waiting_.empty() && blocks_.size() < std::max(schedule_.resident, 1u)) {
        blocks_.push_back(std::make_unique<Block>(waiting_.back(), launch_, thread_main));
        waiting_.pop_back();
      }
      if (schedule_.seed) {
        std::shuffle(blocks_.begin(), blocks_.end(), random_);
        if (idle_rounds_ > 0) draw_laggards();
      }
      bool progress = false;
      for (auto& block : blocks_) progress |= resume_threads(*block);
      const auto finished = [](auto& block) { return block->exited == block->threads.size(); };
      blocks_.erase(std::remove_if(blocks_.begin(), blocks_.end(), finished), blocks_.end());
      idle_rounds_ = progress ? 0 : idle_rounds_ + 1;
      if (idle_rounds_ > schedule_.spin_rounds) throw stuck_wait();
    }
  } catch (...) {
    cancel();
    throw;
  }
}

// Draws who stays behind: about half of the threads, of the warps or of the blocks. They wait until
// the others can do no more without them; then others are drawn.
void Grid::draw_laggards() {
  constexpr unsigned kUnits[] = {1, kWarpThreads, kWarpThreads, kMaxBlockThreads};
  laggard_unit_ = kUnits[random_() % std::size(kUnits)];
  laggard_salt_ = random_();
}

bool Grid::lags(const Thread& thread) const {
  const uint64_t block = thread.block->index;
  const uint64_t unit = (block * kMaxBlockThreads + thread.index) / laggard_unit_;
  return ((unit ^ laggard_salt_) * 0x9e3779b97f4a7c15) >> 63;
}

// Resumes every thread that can run or, with a seed, some of them. True if one did more than spin.
bool Grid::resume_threads(Block& block) {
  const bool leave_behind = schedule_.seed && idle_rounds_ == 0;
  bool alive = false;
  runnable_.clear();
  for (Thread& thread : block.threads) {
    if (thread.at != At::ready && thread.at != At::spin) continue;
    alive = true;
    if (leave_behind && lags(thread)) continue;
    runnable_.push_back(&thread);
  }
  if (!alive) throw divergence(block);
  size_t count = runnable_.size();
  if (schedule_.seed && count > 0) {
    count = 1 + random_() % count;
    for (size_t i = 0; i < count; i++) {
      std::swap(runnable_[i], runnable_[i + random_() % (runnable_.size() - i)]);
    }
  }
  bool progress = false;
  for (size_t i = 0; i < count; i++) progress |= resume(*runnable_[i]);
  return progress;
}

bool Grid::resume(Thread& thread) {
  const bool spun = thread.at == At::spin;
  thread.at = At::ready;
  current_ = &thread;
  thread.fiber->resume();
  if (failure_) std::rethrow_exception(failure_);
  if (thread.at == At::exited && thread.fiber->overflowed()) {
    throw error(*thread.block, "thread " + std::to_string(thread.index) + ": stack overflow");
  }
  return !(spun && thread.at == At::spin);
}

void Grid::thread_main(void* argument) {
  Thread& thread = *static_cast<Thread*>(argument);
  Grid& grid = *running;
  const auto fail = [&](const char* what) {
    const std::string text = "thread " + std::to_string(thread.index) + ": " + what;
    if (!grid.failure_) grid.failure_ = std::make_exception_ptr(grid.error(*thread.block, text));
  };
  try {
    if (!grid.cancelled_) grid.body_();
  } catch (const Cancelled&) {
  } catch (const std::exception& exception) {
    fail(exception.what());
  } catch (...) {
    fail("an exception that is not a std::exception");
  }
  thread.at = At::exited;
  thread.block->exited++;
}

void Grid::suspend() {
  if (!cancelled_) current_->fiber->suspend();
  if (cancelled_) throw Cancelled();
}

void Grid::meet(Group& group, At place) {
  Thread& self = *current_;
  self.at = place;
  if (++group.arrived == group.size) {
    Thread* const first = &self.block->threads[group.first];
    for (Thread* thread = first; thread != first + group.size; thread++) {
      if (thread->at == place) continue;
      failure_ = std::make_exception_ptr(divergence(*self.block));
      throw Cancelled();
    }
    for (Thread* thread = first; thread != first + group.size; thread++) thread->at = At::ready;
    group.arrived = 0;
    if (BlockTrace* trace = self.block->trace.get()) {
      place == At::sync_threads ? trace->threads_met()
                                : trace->warp_met(group.first / kWarpThreads);
    }
  }
  suspend();
}

// Unwinds the frames of every thread that has started.
void Grid::cancel() {
  cancelled_ = true;
  for (auto& block : blocks_) {
    for (Thread& thread : block->threads) {
      if (thread.at == At::exited) continue;
      current_ = &thread;
      thread.fiber->resume();
    }
  }
}

std::runtime_error Grid::error(const Block& block, const std::string& text) const {
  return std::runtime_error(std::string(launch_.kernel) + ": block " + std::to_string(block.index) +
                            ": " + text);
}

std::runtime_error Grid::divergence(const Block& block) const {
  for (const Warp& warp : block.warps) {
    if (warp.group.arrived == 0) continue;
    return error(block, "warp divergence: " + describe(block, warp.group));
  }
  return error(block, "barrier divergence: " + describe(block, block.group));
}

std::runtime_error Grid::stuck_wait() const {
  std::string text = std::string(launch_.kernel) + ": stuck wait";
  for (const auto& block : blocks_) {
    text += &block == &blocks_.front() ? ": block " : "; block ";
    text += std::to_string(block->index) + ": " + describe(*block, block->group);
  }
  if (!waiting_.empty()) text += "; blocks not started: " + std::to_string(waiting_.size());
  return std::runtime_error(text);
}

}  // namespace

Schedule& schedule() {
  thread_local Schedule current;
  return current;
}

void launch(const Launch& launch, const std::function<void()>& body) {
  const std::string kernel = launch.kernel;
  if (running) throw std::logic_error(kernel + ": launched from inside a kernel");
  if (launch.blocks == 0 || launch.threads == 0 || launch.threads > kMaxBlockThreads) {
    throw std::runtime_error(kernel + ": launch of " + std::to_string(launch.blocks) +
                             " blocks of " + std::to_string(launch.threads) + " threads");
  }
  Grid(launch, body).run();
}

unsigned thread_index() { return grid().current().index; }
unsigned block_index() { return grid().current().block->index; }
unsigned block_threads() { return grid().launch().threads; }
unsigned grid_blocks() { return grid().launch().blocks; }
void* shared_memory() { return grid().current().block->shared; }

void sync_threads() { grid().meet(grid().current().block->group, At::sync_threads); }

void spin() {
  grid().current().at = At::spin;
  grid().suspend();
}

void global_access(const void* address, size_t bytes, Access access) {
  const Thread& thread = grid().current();
  BlockTrace* trace = thread.block->trace.get();
  if (trace) trace->global(thread.index, address, bytes, access, __builtin_return_address(0));
}

void shared_access(const void* address, size_t bytes, Access access) {
  const Thread& thread = grid().current();
  BlockTrace* trace = thread.block->trace.get();
  if (trace) trace->shared(thread.index, address, bytes, access, __builtin_return_address(0));
}

void released(const void* flag) {
  const Thread& thread = grid().current();
  if (BlockTrace* trace = thread.block->trace.get()) trace->released(thread.index, flag);
}

void acquired(const void* flag) {
  const Thread& thread = grid().current();
  if (BlockTrace* trace = thread.block->trace.get()) trace->acquired(thread.index, flag);
}

uint64_t shuffle_xor_bits(uint64_t value, unsigned lane_mask) {
  const Thread& thread = grid().current();
  Warp& warp = thread.block->warps[thread.index / kWarpThreads];
  const unsigned lane = thread.index % kWarpThreads;
  uint64_t* slots = warp.slots[warp.turn[lane]++ % 2];
  slots[lane] = value;
  grid().meet(warp.group, At::shuffle_xor);
  return slots[(lane ^ lane_mask) % kWarpThreads];
}

}  // namespace simt
