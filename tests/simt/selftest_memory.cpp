// The self-test of the SIMT harness: what a recording counts, and what it refuses.
#include <vector>

#include "selftest.h"

namespace selftest {
namespace {

using namespace simt;

template <class T>
T load(const T* address) {
  access(address, sizeof(T), Access::read);
  return *address;
}

template <class T>
void store(T* address, T value) {
  access(address, sizeof(T), Access::write);
  *address = value;
}

template <class T>
Tensor tensor(const char* name, const std::vector<T>& values, bool output) {
  return {name, reinterpret_cast<uintptr_t>(values.data()), values.size() * sizeof(T), sizeof(T),
          output};
}

// Two launches of 64 threads; y is written with a stride of two elements.
std::string traffic() {
  alignas(32) float storage[64] = {};
  std::vector<float> y(128);
  start_recording({{"x", reinterpret_cast<uintptr_t>(storage), sizeof storage, 4, false},
                   tensor("y", y, true)});
  for (int i = 0; i < 2; i++) {
    launch({"copy", 1, 64, 0}, [&] {
      const float value = load(storage + thread_index());
      if (thread_index() < 8) load(storage);  // 8 lanes share 4 bytes
      store(&y[2 * thread_index()], value);
    });
  }
  const std::vector<LaunchTraffic> launches = stop_recording();
  expect(launches.size() == 2 && launches[0].launch.kernel == "copy", "two launches");
  const TensorTraffic &first = launches[0].tensors[0], &second = launches[1].tensors[0];
  expect(first.first_read == 256 && first.read_again == 0, "first reads");
  expect(first.read_repeatedly == 4, "a read of several lanes counted once");
  expect(second.first_read == 0 && second.read_again == 256, "reads of an earlier launch");
  expect(second.largest_distance == 512, "distance: 256 bytes of x, 256 of y");
  expect(first.sectors == 9 && first.least_sectors == 9, "neighbouring lanes fill their sectors");
  const TensorTraffic& written = launches[0].tensors[1];
  expect(written.written == 256 && written.least_sectors == 8, "written bytes");
  expect(written.sectors >= 16 && written.sectors <= 18, "a stride of two halves the efficiency");
  return "ok";
}

// Conflicts of one warp whose lane i reads or writes element i * stride.
template <class T>
uint64_t conflicts(unsigned stride) {
  start_recording({});
  launch({"shared", 1, 32, 32 * 32 * sizeof(T)}, [&] {
    T* mine = static_cast<T*>(shared_memory()) + thread_index() * stride;
    if (stride == 0 && thread_index() > 0) return;
    access(mine, sizeof(T), Access::write);
  });
  return stop_recording().at(0).bank_conflicts;
}

std::string bank_conflicts() {
  expect(conflicts<float>(1) == 0 && conflicts<double>(1) == 0, "none between neighbours");
  expect(conflicts<float>(2) == 1, "two ways");
  expect(conflicts<float>(32) == 31, "all in one bank");
  expect(conflicts<float>(31) == 0, "an odd stride");
  expect(conflicts<double>(16) == 2 * 15, "two halves of 16 ways");
  return "ok";
}

// The error of a kernel of 64 threads that is recorded, with tensors x [63] and y [64].
std::string refusal(void (*body)(float* x, float* y)) {
  std::vector<float> x(63), y(64);
  start_recording({tensor("x", x, false), tensor("y", y, true)});
  const std::string message =
      report({"kernel", 1, 64, 16 * sizeof(float)}, [&] { body(x.data(), y.data()); });
  stop_recording();
  return message;
}

// Block 0 writes y and sets a flag; block 1 waits for it and reads y. The steps are those that may
// be missing.
std::string handing_over(bool barrier, bool release, bool acquire, bool second_barrier) {
  std::vector<float> y(64);
  unsigned flag = 0;
  schedule.resident = 2;
  start_recording({tensor("y", y, true)});
  const std::string message = report({"kernel", 2, 64, 0}, [&] {
    if (block_index() == 0) {
      store(&y[thread_index()], 1.f);
      if (barrier) sync_threads();
      if (thread_index() != 63) return;
      if (release) access(&flag, sizeof flag, Access::release);
      flag = 1;
      return;
    }
    while (thread_index() == 0 && flag == 0) spin();
    if (thread_index() == 0 && acquire) access(&flag, sizeof flag, Access::acquire);
    if (second_barrier) sync_threads();
    if (thread_index() > 0)
      while (flag == 0) spin();
    load(&y[63 - thread_index()]);
  });
  stop_recording();
  return message;
}

float* shared_float(unsigned i, Access kind) {
  float* address = static_cast<float*>(shared_memory()) + i;
  access(address, sizeof(float), kind);
  return address;
}

}  // namespace

Cases memory_cases() {
  return {
      {"traffic", traffic},
      {"bank-conflicts", bank_conflicts},
      {"read-beyond", [] { return refusal([](float* x, float*) { load(x + thread_index()); }); }},
      {"write-input", [] { return refusal([](float* x, float*) { store(x, 1.f); }); }},
      {"unwritten",
       [] {
         return refusal([](float*, float* y) {
           if (thread_index() < 40) store(y + thread_index(), 1.f);
           sync_threads();
           load(y + thread_index());
         });
       }},
      {"misaligned",
       [] { return refusal([](float* x, float*) { load(reinterpret_cast<double*>(x + 1)); }); }},
      {"shared-race",
       [] {
         return refusal([](float*, float*) {
           const unsigned i = thread_index() % 16;
           if (thread_index() < 16) *shared_float(i, Access::write) = 1;
           if (thread_index() >= 48) shared_float(i, Access::read);
         });
       }},
      {"shared-ordered",
       [] {
         return refusal([](float*, float*) {
           const unsigned i = thread_index() % 16;
           if (thread_index() < 16) *shared_float(i, Access::write) = 1;
           sync_threads();
           shared_float(i, Access::read);
           sync_threads();
           if (thread_index() < 16) *shared_float(i, Access::write) = 2;
           sync_threads();
           shared_float(i, Access::read);
         });
       }},
      {"global-race",
       [] {
         return refusal([](float*, float* y) {
           if (thread_index() == 3) store(y, 1.f);
           if (thread_index() == 7) load(y);
         });
       }},
      {"overwritten",
       [] {
         return refusal([](float*, float* y) {
           store(y + thread_index(), 1.f);
           sync_threads();
           if (thread_index() == 30) load(y + 31);
           if (thread_index() == 31) store(y + 31, 2.f);
         });
       }},
      {"overwritten-late",
       [] {
         return refusal([](float*, float* y) {
           store(y + thread_index(), 1.f);
           sync_threads();
           load(y + 31);
           if (thread_index() == 63) store(y + 31, 2.f);
         });
       }},
      {"handed-over", [] { return handing_over(true, true, true, true); }},
      {"released-early", [] { return handing_over(false, true, true, true); }},
      {"not-released", [] { return handing_over(true, false, true, true); }},
      {"not-acquired", [] { return handing_over(true, true, false, true); }},
      {"read-early", [] { return handing_over(true, true, true, false); }},
      {"shared-beyond",
       [] { return refusal([](float*, float*) { shared_float(16, Access::write); }); }},
      {"shared-unwritten",
       [] { return refusal([](float*, float*) { shared_float(3, Access::read); }); }},
  };
}

}  // namespace selftest
