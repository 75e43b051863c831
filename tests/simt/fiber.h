// A fiber: a function that runs on a stack of its own and can be suspended half-way. No scheduler
// here.
//
// glibc's contexts make the stack; the compiler's own setjmp and longjmp switch it without a
// system call. g++, and clang on x86-64; AddressSanitizer is told of every switch.
#pragma once

#include <ucontext.h>

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
    void* registers[5];           // for __builtin_setjmp
    ucontext_t* first = nullptr;  // instead of `registers`, until it has run
    // For AddressSanitizer only: the bounds of the stack and its shadow frames.
    const void* bottom = nullptr;
    size_t size = 0;
    void* shadow_frames = nullptr;
  };

  [[noreturn]] static void enter();
  [[noreturn]] static void jump(Context& to);
  static void exchange(Context& from, Context& to);

  std::unique_ptr<std::byte[]> stack_;
  Context own_;
  Context host_;
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
};

}  // namespace simt
