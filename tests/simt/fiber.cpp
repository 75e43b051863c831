// The stack switch, and what AddressSanitizer has to know about it.
#include "fiber.h"

#include <cstring>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#define SIMT_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIMT_ADDRESS_SANITIZER 1
#endif
#endif

#ifdef SIMT_ADDRESS_SANITIZER
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {
namespace {

// Large enough for a kernel compiled without optimisation and with sanitizers; touched pages only.
constexpr size_t kStackBytes = 64 * 1024;

// Below it lies room that an overflow of moderate size may spoil without harm. The first bytes that
// it would spoil are marked; they are more than one word, for a frame is not written everywhere.
constexpr size_t kSpareBytes = 16 * 1024;
constexpr size_t kMarkBytes = 256;
constexpr int kMark = 0xa5;

// The fiber that is being made: enter() takes no argument.
thread_local Fiber* made = nullptr;

}  // namespace

Fiber::Fiber() : stack_(new std::byte[kSpareBytes + kStackBytes]) {
  own_.bottom = stack_.get();
  own_.size = kSpareBytes + kStackBytes;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack = {stack_.get(), 0, own_.size};
  makecontext(&context, &Fiber::enter, 0);
  own_.first = &context;
  made = this;
  exchange(host_, own_);  // as far as the first exchange of enter()
}

void Fiber::enter() {
  Fiber& self = *made;
#ifdef SIMT_ADDRESS_SANITIZER
  __sanitizer_finish_switch_fiber(nullptr, &self.host_.bottom, &self.host_.size);
#endif
  for (;;) {
    exchange(self.own_, self.host_);
    self.entry_(self.argument_);
  }
}

void Fiber::start(void (*entry)(void*), void* argument) {
  entry_ = entry;
  argument_ = argument;
  std::memset(stack_.get() + kSpareBytes, kMark, kMarkBytes);
}

// Neither is instrumented: AddressSanitizer would take the stack for left. Not inlined: no function
// may hold both __builtin_setjmp and __builtin_longjmp.
[[gnu::noinline, gnu::no_sanitize_address]] void Fiber::jump(Context& to) {
  if (to.first) setcontext(std::exchange(to.first, nullptr));
  __builtin_longjmp(to.registers, 1);
}

[[gnu::no_sanitize_address]] void Fiber::exchange(Context& from, Context& to) {
#ifdef SIMT_ADDRESS_SANITIZER
  __sanitizer_start_switch_fiber(&from.shadow_frames, to.bottom, to.size);
#endif
  if (!__builtin_setjmp(from.registers)) jump(to);
#ifdef SIMT_ADDRESS_SANITIZER
  __sanitizer_finish_switch_fiber(from.shadow_frames, &to.bottom, &to.size);
#endif
}

void Fiber::resume() { exchange(host_, own_); }

void Fiber::suspend() { exchange(own_, host_); }

bool Fiber::overflowed() const {
  // Equal to its own successor everywhere and to kMark at the start.
  const std::byte* mark = stack_.get() + kSpareBytes;
  return *mark != std::byte{kMark} || std::memcmp(mark, mark + 1, kMarkBytes - 1) != 0;
}

}  // namespace simt
