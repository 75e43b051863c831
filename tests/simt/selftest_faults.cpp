// The other half of the SIMT harness's self-test: kernels that are wrong on purpose.
#include <string>

#include "selftest.h"

namespace selftest {
namespace {

using namespace simt;

// A warp that is ahead overwrites what thread 0 has yet to read: one barrier too few.
std::string missing_barrier() {
  unsigned wrong = 0;
  for (schedule.seed = 1; schedule.seed <= 20; schedule.seed++) {
    unsigned seen = 0;
    launch({"racy", 1, 64, sizeof(unsigned)}, [&] {
      unsigned* shared = static_cast<unsigned*>(shared_memory());
      if (thread_index() == 32) *shared = 1;
      sync_threads();
      if (thread_index() == 0) seen = *shared;
      // here sync_threads belongs
      if (thread_index() == 32) *shared = 2;
    });
    wrong += seen != 1;
  }
  expect(wrong > 0 && wrong < 20, "the race shows under some seeds");
  return "ok";
}

std::string exited_thread() {
  return report({"exits", 4, 64, 0}, [] {
    if (block_index() == 3 && thread_index() >= 32) return;
    sync_threads();
  });
}

std::string divergent_barrier() {
  return report({"diverges", 1, 64, 0}, [] {
    if (thread_index() == 5) shuffle_xor(1.0f, 1);
    sync_threads();
  });
}

std::string exited_lane() {
  return report({"exits", 2, 64, 0}, [] {
    if (thread_index() == 63) return;
    shuffle_xor(1.0f, 1);
  });
}

std::string stuck() {
  return report({"waits", 2, 64, 0}, [] {
    if (block_index() == 1 && thread_index() == 2) {
      for (;;) spin();
    }
    sync_threads();
  });
}

std::string exception() {
  return report({"throws", 3, 64, 0}, [] {
    sync_threads();
    if (block_index() == 1 && thread_index() == 17) throw std::out_of_range("index 9 of 8");
    sync_threads();
  });
}

// Every failure unwinds the frames of all threads (a leak shows under AddressSanitizer), and the
// next launch is not disturbed.
std::string recovery() {
  const std::string text(100, 'x');
  size_t destroyed = 0;
  struct Local {
    size_t& destroyed;
    std::string text;
    ~Local() { destroyed++; }
  };
  schedule.resident = 2;
  for (int round = 0; round < 3; round++) {
    const std::string message = report({"throws", 4, 64, 0}, [&] {
      Local local{destroyed, text};
      sync_threads();
      if (block_index() == 1 && thread_index() == 63) throw 1;
      sync_threads();
    });
    expect(message == "throws: block 1: thread 63: an exception that is not a std::exception",
           message);
    expect(destroyed == 128, "128 locals destroyed, not " + std::to_string(destroyed));
    destroyed = 0;
    exited_lane(), divergent_barrier();
    unsigned sum = 0;
    launch({"sums", 3, 256, 0}, [&] {
      sync_threads();
      sum += shuffle_xor(thread_index(), 1);
    });
    expect(sum == 3 * 255 * 128, "the right sum after a failure");
  }
  return "ok";
}

std::string misuse() {
  expect(report({"empty", 0, 32, 0}, [] {}) == "empty: launch of 0 blocks of 32 threads",
         "empty grid");
  expect(report({"wide", 1, 1025, 0}, [] {}) == "wide: launch of 1 blocks of 1025 threads",
         "wide block");
  const std::string nested =
      report({"outer", 1, 32, 0}, [] { launch({"inner", 1, 32, 0}, [] {}); });
  expect(nested == "outer: block 0: thread 0: inner: launch of 1 blocks of 32 threads, by a thread",
         nested);
  try {
    thread_index();
  } catch (const std::logic_error& error) {
    return error.what();
  }
  return "no error";
}

// For AddressSanitizer: an element past the end of shared memory, of an array on a fiber's stack,
// of that stack, and a pointer into the shared memory of a block that has ended.
std::string past_shared_memory() {
  launch({"overruns", 2, 32, 33 * sizeof(float)}, [] {
    static_cast<volatile float*>(shared_memory())[thread_index() + 2] = 1;  // the last index is 33
  });
  return "not caught";
}

std::string past_local_array() {
  launch({"overruns", 1, 32, 0}, [] {
    float local[8] = {};
    float* volatile element = local;  // out of sight of the compiler
    sync_threads();
    if (thread_index() == 31) element[8] = 1;
  });
  return "not caught";
}

// Fills the stack down to `bytes` below `top`. AddressSanitizer may keep arrays elsewhere, not
// alloca.
int descend(const char* top, long bytes) {
  volatile char* const frame = static_cast<volatile char*>(__builtin_alloca(256));
  for (int i = 0; i < 256; i++) frame[i] = static_cast<char>(bytes);
  if (top - static_cast<const char*>(__builtin_frame_address(0)) > bytes) return 0;
  return descend(top, bytes) + frame[0];
}

std::string stack_overflow() {
  launch({"recurses", 1, 64, 0}, [] {
    const long bytes = thread_index() == 3 ? 68 * 1024 : 48 * 1024;
    descend(static_cast<const char*>(__builtin_frame_address(0)), bytes);
  });
  return "not caught";
}

std::string stale_shared_memory() {
  volatile float* published = nullptr;
  launch({"publishes", 2, 32, 64}, [&] {
    if (block_index() == 0) {
      published = static_cast<volatile float*>(shared_memory());
    } else {
      published[thread_index() % 16] = 1;
    }
  });
  return "not caught";
}

}  // namespace

Cases faulty_cases() {
  return {
      {"missing-barrier", missing_barrier},
      {"exited-thread", exited_thread},
      {"divergent-barrier", divergent_barrier},
      {"exited-lane", exited_lane},
      {"stuck", stuck},
      {"exception", exception},
      {"recovery", recovery},
      {"stack-overflow", stack_overflow},
      {"misuse", misuse},
      {"past-shared-memory", past_shared_memory},
      {"past-local-array", past_local_array},
      {"stale-shared-memory", stale_shared_memory},
  };
}

}  // namespace selftest
