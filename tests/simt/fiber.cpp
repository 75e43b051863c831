// The stack switch for x86-64 and AArch64, and what AddressSanitizer has to know about it.
#include "fiber.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__SANITIZE_ADDRESS__)
#define SIMT_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIMT_ADDRESS_SANITIZER 1
#endif
#endif

#ifdef SIMT_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Saves the callee-saved registers on the current stack, stores its pointer in *from, takes `to` as
// the stack and restores the registers found there. On x86-64 it leaves by a jump: a `ret` would be
// predicted wrong every time (34 ns per wait of a thread, against 25 ns).
extern "C" void simt_switch_stack(void** from, void* to) __asm__("simt_switch_stack");

#if defined(__x86_64__)
__asm__(R"(
.text
.p2align 4
.globl simt_switch_stack
simt_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rdx
  jmp *%rdx
)");
#elif defined(__aarch64__)
__asm__(R"(
.text
.p2align 4
.globl simt_switch_stack
simt_switch_stack:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");
#else
#error "fiber.cpp switches stacks on x86-64 and AArch64 only"
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

// What simt_switch_stack restores from a stack that has not run yet, in 8-byte words.
#if defined(__x86_64__)
constexpr size_t kFrameWords = 8;  // six registers, the return address, the end of the call chain
constexpr size_t kReturnWord = 6;
#else
constexpr size_t kFrameWords = 20;  // x19 to x30, d8 to d15
constexpr size_t kReturnWord = 11;  // x30
#endif

// The fiber that is being resumed: enter() takes no argument.
thread_local Fiber* resumed = nullptr;

}  // namespace

Fiber::Fiber() : stack_(new std::byte[kSpareBytes + kStackBytes]) {
  own_.bottom = stack_.get();
  own_.size = kSpareBytes + kStackBytes;
}

void Fiber::start(void (*entry)(void*), void* argument) {
  entry_ = entry;
  argument_ = argument;
#ifdef SIMT_ADDRESS_SANITIZER
  // The frame of enter() is never left: what is poisoned there would stay so.
  __asan_unpoison_memory_region(own_.bottom, own_.size);
#endif
  std::memset(stack_.get() + kSpareBytes, kMark, kMarkBytes);
  const uintptr_t top = (reinterpret_cast<uintptr_t>(own_.bottom) + own_.size) & ~uintptr_t{15};
  uint64_t frame[kFrameWords] = {};
  frame[kReturnWord] = reinterpret_cast<uintptr_t>(&Fiber::enter);
  own_.stack_pointer = reinterpret_cast<void*>(top - sizeof frame);
  std::memcpy(own_.stack_pointer, frame, sizeof frame);
}

void Fiber::exchange(Context& from, Context& to, [[maybe_unused]] bool from_ends) {
#ifdef SIMT_ADDRESS_SANITIZER
  __sanitizer_start_switch_fiber(from_ends ? nullptr : &from.shadow_frames, to.bottom, to.size);
#endif
  simt_switch_stack(&from.stack_pointer, to.stack_pointer);
#ifdef SIMT_ADDRESS_SANITIZER
  __sanitizer_finish_switch_fiber(from.shadow_frames, &to.bottom, &to.size);
#endif
}

void Fiber::enter() {
  Fiber& self = *resumed;
#ifdef SIMT_ADDRESS_SANITIZER
  __sanitizer_finish_switch_fiber(nullptr, &self.host_.bottom, &self.host_.size);
#endif
  self.entry_(self.argument_);
  exchange(self.own_, self.host_, true);
  std::abort();  // an ended fiber was resumed
}

void Fiber::resume() {
  resumed = this;
  exchange(host_, own_, false);
}

void Fiber::suspend() { exchange(own_, host_, false); }

bool Fiber::overflowed() const {
  // Equal to its own successor everywhere and to kMark at the start.
  const std::byte* mark = stack_.get() + kSpareBytes;
  return *mark != std::byte{kMark} || std::memcmp(mark, mark + 1, kMarkBytes - 1) != 0;
}

}  // namespace simt
