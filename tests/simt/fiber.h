// A fiber: a function that runs on a stack of its own and can be suspended half-way. No scheduler
// here.
//
// The compiler's own setjmp and longjmp switch the stack without a system call. g++ and clang keep
// the same words, frame, address and stack: a new fiber begins with these, made by hand. x86-64.
// Nothing watches the end of a stack but AddressSanitizer.
#pragma once

#include <sanitizer/common_interface_defs.h>

#include <cstddef>
#include <memory>

// AddressSanitizer must hear of every switch. Null without it.
#pragma weak __sanitizer_start_switch_fiber
#pragma weak __sanitizer_finish_switch_fiber

namespace simt {

class Fiber {
 public:
  // `body` must let no exception escape.
  explicit Fiber(void (*body)()) : body_(body) {
    void** const top = &stack_[kStackWords - 2];  // as if called from address 0
    own_ = {stack_.get(), kStackBytes, {top, reinterpret_cast<void*>(enter), top + 1}};
  }

  // Called outside the fiber: runs it until it suspends or its body returns; then, the body anew.
  void resume() {
    resumed_ = this;
    exchange(host_, own_);
  }

  // Called inside the fiber: returns to the caller of resume(), and comes back with the next one.
  void suspend() { exchange(own_, host_); }

 private:
  // Enough for a kernel compiled without optimisation and with sanitizers.
  static constexpr size_t kStackBytes = 64 * 1024, kStackWords = kStackBytes / sizeof(void*);

  struct Side {
    const void* stack;
    size_t stack_bytes;
    void* registers[5];  // of __builtin_setjmp
  };

  static void enter() {
    arrive(nullptr, resumed_->host_);
    for (;;) {
      resumed_->body_();
      resumed_->suspend();
    }
  }

  // Neither this nor jump() is instrumented: AddressSanitizer would take the stack for left.
  [[gnu::noinline, gnu::no_sanitize_address]] static void exchange(Side& from, Side& to) {
    void* frames = nullptr;
    if (__sanitizer_start_switch_fiber) {
      __sanitizer_start_switch_fiber(&frames, to.stack, to.stack_bytes);
    }
    if (!__builtin_setjmp(from.registers)) jump(to);
    arrive(frames, to);
  }

  // No function may hold both __builtin_setjmp and __builtin_longjmp.
  [[gnu::noinline, gnu::no_sanitize_address]] static void jump(Side& to) {
    __builtin_longjmp(to.registers, 1);
  }

  static void arrive(void* frames, Side& from) {
    if (!__sanitizer_finish_switch_fiber) return;
    __sanitizer_finish_switch_fiber(frames, &from.stack, &from.stack_bytes);
  }

  static inline thread_local Fiber* resumed_;
  void (*body_)();
  std::unique_ptr<void*[]> stack_{new void*[kStackWords]()};
  Side own_, host_;
};

}  // namespace simt
