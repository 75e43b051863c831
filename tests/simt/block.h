// A block of the SIMT harness: its threads, the groups in which they meet, its memory. Internal to
// simt.cpp.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "fiber.h"
#include "simt.h"
#include "trace.h"

namespace simt {

// Where a thread is.
enum class At { ready, spin, sync_threads, shuffle_xor, exited };

struct Block;

struct Thread {
  Block* block;
  unsigned index;
  At at;
  std::unique_ptr<Fiber> fiber;
};

// Threads of a block that meet: a warp, or all.
struct Group {
  unsigned first;
  unsigned size;
  unsigned arrived;
};

struct Warp {
  Group group;
  // Two sets of slots, used in turn: a lane that has left a shuffle fills the other set while a
  // slow lane still reads. It gets no further ahead, for the next shuffle waits for the slow lane
  // too.
  unsigned turn[kWarpThreads];
  uint64_t slots[2][kWarpThreads];
};

struct Block {
  // Takes fibers that earlier blocks of this OS thread have left, armed with thread_main(Thread*).
  Block(unsigned index, const Launch& launch, void (*thread_main)(void*));
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  unsigned index;
  unsigned exited = 0;
  Group group;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  void* shared;
  std::unique_ptr<BlockTrace> trace;  // null while nothing is recorded
};

// "thread 0 waits at sync_threads (and 31 more), thread 32 has exited"
std::string describe(const Block& block, const Group& group);

}  // namespace simt
