// A fiber: a stack to run on. No scheduler here.
//
// glibc's contexts begin on a new stack; from then on the compiler's own setjmp and longjmp change
// it without a system call. Needs g++, or clang on x86-64: elsewhere clang has no such longjmp.
// Nothing watches the end of a stack but AddressSanitizer.
#pragma once

#include <sanitizer/common_interface_defs.h>
#include <ucontext.h>

#include <cstddef>
#include <memory>
#include <utility>

// AddressSanitizer must hear of every change. Null without it.
#pragma weak __sanitizer_start_switch_fiber
#pragma weak __sanitizer_finish_switch_fiber

namespace simt {

class Fiber {
 public:
  Fiber() = default;  // for what already runs: its stack

  // A new stack. `body` must neither return nor let an exception escape.
  explicit Fiber(void (*body)())
      : body_(body), begun_(false), memory_(new std::byte[kBytes]), stack_(memory_.get()) {
    getcontext(&start_);
    start_.uc_stack = {memory_.get(), 0, kBytes};
    makecontext(&start_, enter, 0);
  }

  // From this fiber, which runs, to another; returns with the next change to this one. If this one
  // is `done`, AddressSanitizer forgets its frames. Neither this nor jump() is instrumented: it
  // would take the stack for left.
  [[gnu::noinline, gnu::no_sanitize_address]] void change_to(Fiber& to, bool done = false) {
    from_ = this, to_ = &to;
    void* frames = nullptr;
    if (auto* tell = __sanitizer_start_switch_fiber) {
      tell(done ? nullptr : &frames, to.stack_, to.bytes_);
    }
    if (!__builtin_setjmp(registers_)) jump();
    arrive(frames);
  }

 private:
  static void enter() {
    arrive(nullptr);
    to_->body_();
  }

  // No function may hold both __builtin_setjmp and __builtin_longjmp.
  [[gnu::noinline, gnu::no_sanitize_address]] static void jump() {
    if (!std::exchange(to_->begun_, true)) setcontext(&to_->start_);
    __builtin_longjmp(to_->registers_, 1);
  }

  static void arrive(void* frames) {
    if (auto* tell = __sanitizer_finish_switch_fiber) tell(frames, &from_->stack_, &from_->bytes_);
  }

  // Enough for a kernel compiled without optimisation and with sanitizers.
  static constexpr size_t kBytes = 64 * 1024;
  static inline thread_local Fiber *from_, *to_;  // of the last change

  void (*const body_)() = nullptr;
  bool begun_ = true;
  const std::unique_ptr<std::byte[]> memory_;
  const void* stack_ = nullptr;
  size_t bytes_ = kBytes;
  ucontext_t start_;
  void* registers_[5];  // of __builtin_setjmp
};

}  // namespace simt
