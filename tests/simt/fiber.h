// A fiber: a function that runs on a stack of its own and can be suspended half-way. No scheduler
// here.
//
// Switching costs a few nanoseconds: it saves the callee-saved registers and exchanges the stack
// pointer, with no system call. x86-64 and AArch64, g++ and clang; AddressSanitizer is told of
// every switch.
#pragma once

#include <cstddef>
#include <memory>

namespace simt {

class Fiber {
 public:
  Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Arms the fiber: the next resume() calls entry(argument) on the fiber's stack. The fiber must be
  // new, or its last entry must have returned; `entry` must let no exception escape.
  void start(void (*entry)(void*), void* argument);

  // Called outside the fiber: runs it until it suspends, or until its entry returns.
  void resume();

  // Called inside the fiber: returns to the caller of resume(), and comes back with the next one.
  void suspend();

  // True once the fiber has written past the end of its stack. Found after the fact, by a mark
  // there: a frame that is large enough steps over it.
  bool overflowed() const;

 private:
  struct Context {
    void* stack_pointer = nullptr;
    // For AddressSanitizer only: the bounds of the stack and its shadow frames.
    const void* bottom = nullptr;
    size_t size = 0;
    void* shadow_frames = nullptr;
  };

  [[noreturn]] static void enter();
  static void exchange(Context& from, Context& to, bool from_ends);

  std::unique_ptr<std::byte[]> stack_;
  Context own_;
  Context host_;
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
};

}  // namespace simt
