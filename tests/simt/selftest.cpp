// The self-test of the SIMT harness, with kernels of its own: `selftest NAME` runs one case and
// prints what tests/test_simt_harness.py expects. Here: kernels that are right.
#include "selftest.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

namespace selftest {
namespace {

using namespace simt;

double warp_sum(double value) {
  for (unsigned mask = kWarpThreads / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// Every block sums `threads` numbers, [rounds][threads], through shuffles and shared memory.
void sum_kernel(const std::vector<double>& x, unsigned threads, unsigned rounds,
                std::vector<double>& sums) {
  double* partial = static_cast<double*>(shared_memory());  // [warps]
  const unsigned thread = thread_index(), warps = threads / kWarpThreads;
  for (unsigned round = 0; round < rounds; round++) {
    const double part = warp_sum(x[round * threads + thread]);
    if (thread % kWarpThreads == 0) partial[thread / kWarpThreads] = part;
    sync_threads();
    if (thread == 0) {
      double sum = 0;
      for (unsigned w = 0; w < warps; w++) sum += partial[w];
      sums[block_index() * rounds + round] = sum;
    }
    sync_threads();
  }
}

std::vector<double> sums_of(unsigned blocks, unsigned threads, unsigned rounds) {
  std::vector<double> x(rounds * threads), sums(blocks * rounds, NAN);
  for (size_t i = 0; i < x.size(); i++) x[i] = std::sin(double(i));
  launch({"sum", blocks, threads, threads / kWarpThreads * sizeof(double)},
         [&] { sum_kernel(x, threads, rounds, sums); });
  for (size_t i = 0; i < sums.size(); i++) {
    double exact = 0;
    for (unsigned t = 0; t < threads; t++) exact += x[i % rounds * threads + t];
    expect(std::fabs(sums[i] - exact) < 1e-12, "the sum of round " + std::to_string(i));
  }
  return sums;
}

std::string sum() {
  for (unsigned threads : {32, 64, 256, 1024}) sums_of(3, threads, 5);
  return "ok";
}

std::string same_bits() {
  const std::vector<double> in_order = sums_of(6, 256, 3);
  for (schedule.resident = 1; schedule.resident <= 3; schedule.resident++) {
    for (schedule.seed = 1; schedule.seed <= 20; schedule.seed++) {
      const std::vector<double> sums = sums_of(6, 256, 3);
      expect(std::memcmp(sums.data(), in_order.data(), sums.size() * sizeof(double)) == 0,
             "equal bits");
    }
  }
  return "ok";
}

// Threads leave marks in the order in which they run after each barrier.
std::vector<unsigned> trace_of(uint64_t seed) {
  schedule = {2, seed, 100};
  std::vector<unsigned> trace;
  launch({"trace", 3, 64, 0}, [&] {
    for (int i = 0; i < 3; i++) {
      trace.push_back(block_index() * 64 + thread_index());
      sync_threads();
    }
  });
  return trace;
}

std::string seeds() {
  expect(trace_of(7) == trace_of(7), "one interleaving per seed");
  expect(trace_of(7) != trace_of(8), "another interleaving for another seed");
  const std::vector<unsigned> trace = trace_of(0);
  for (unsigned i = 0; i < 128; i++) expect(trace[i] == i, "ascending order with seed 0");
  expect(trace[384] == 128, "block 2 starts after blocks 0 and 1");
  return "ok";
}

std::string partial_warps() {
  double missing = 0;
  unsigned sums = 0;
  launch({"partial", 2, 40, 0}, [&] {
    double value = thread_index();
    for (unsigned mask = 4; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    const double first = thread_index() / 8 * 8;
    if (value == 8 * first + 28) sums++;
    const double far = shuffle_xor(double(thread_index()), 16);
    if (thread_index() == 33) missing = far;
  });
  expect(sums == 80, "sums over 8 lanes, in the whole warp and in the part of one");
  expect(std::isnan(missing), "NaN from a lane that does not exist");
  return "ok";
}

std::string poison() {
  unsigned poisoned = 0;
  schedule.resident = 2;
  launch({"poison", 5, 32, 100 * sizeof(float)}, [&] {
    float* shared = static_cast<float*>(shared_memory());
    expect(reinterpret_cast<uintptr_t>(shared) % 16 == 0, "aligned shared memory");
    for (unsigned i = thread_index(); i < 100; i += 32) {
      poisoned += std::isnan(shared[i]);
      shared[i] = 0;
    }
  });
  expect(poisoned == 500, "NaN in every element before every block");
  return "ok";
}

// Block 0 waits for what block 1 publishes.
std::string pipeline(unsigned resident, uint64_t seed) {
  schedule.resident = resident;
  schedule.seed = seed;
  unsigned ready = 0;
  double product = 0, consumed = 0;
  const std::string message = report({"pipeline", 2, 64, 0}, [&] {
    if (block_index() == 1) {
      for (int i = 0; i < 10; i++) sync_threads();
      if (thread_index() == 0) product = 42, ready = 1;
    } else {
      if (thread_index() == 0) {
        while (ready == 0) spin();
      }
      sync_threads();
      if (thread_index() == 63) consumed = product;
    }
  });
  return message == "no error" && consumed == 42 ? "ok" : message;
}

std::string pipelines() {
  for (uint64_t seed = 0; seed <= 20; seed++) expect(pipeline(2, seed) == "ok", "no stuck wait");
  return "ok";
}

// Nanoseconds for a thread to wait once: two switches and its share of the scheduler.
std::string switch_cost() {
  constexpr int kBarriers = 1000;
  double best = 1e9;
  for (int repetition = 0; repetition < 5; repetition++) {
    const auto start = std::chrono::steady_clock::now();
    launch({"waits", 1, 256, 0}, [] {
      for (int i = 0; i < kBarriers; i++) sync_threads();
    });
    const std::chrono::duration<double, std::nano> elapsed =
        std::chrono::steady_clock::now() - start;
    best = std::min(best, elapsed.count() / (256 * kBarriers));
  }
  return std::to_string(best);
}

}  // namespace

Cases sound_cases() {
  return {
      {"sum", sum},
      {"same-bits", same_bits},
      {"seeds", seeds},
      {"partial-warps", partial_warps},
      {"poison", poison},
      {"pipeline", pipelines},
      {"pipeline-alone", [] { return pipeline(1, 0); }},
      {"switch-cost", switch_cost},
  };
}

}  // namespace selftest

int main(int count, char** arguments) {
  selftest::Cases cases = selftest::sound_cases();
  cases.merge(selftest::faulty_cases());
  cases.merge(selftest::memory_cases());
  if (count != 2) {
    for (const auto& [name, body] : cases) std::puts(name.c_str());
    return 2;
  }
  try {
    std::puts(cases.at(arguments[1])().c_str());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", arguments[1], error.what());
    return 1;
  }
  return 0;
}
