// How the work is divided among threads: by whole samples where there are enough of them, else stage by
// stage over channels, rows and weights.
#pragma once

#include "../cpu.h"
#include "../vec/vec.h"
#include "../workspace.h"

namespace seblock::cpu {
namespace {

// Elements of work below which another thread costs more than it brings: about 3 us of streaming.
constexpr int64_t kGrain = 32768;

SEBLOCK_INLINE int64_t at_most(int64_t value, int64_t limit) { return value < limit ? value : limit; }
SEBLOCK_INLINE int64_t at_least(int64_t value, int64_t limit) { return value > limit ? value : limit; }

// body(first, last) over [begin, end), in pieces of at least `grain`.
template <typename Body>
void parallel(const ThreadPool& pool, int64_t begin, int64_t end, int64_t grain, const Body& body) {
  if (begin >= end) return;
  if (pool.threads <= 1 || end - begin <= grain) return body(begin, end);
  pool.parallel_for(
      begin, end, at_least(grain, 1),
      [](int64_t first, int64_t last, void* context) {
        (*static_cast<const Body*>(context))(first, last);
      },
      const_cast<Body*>(&body));
}

// Pieces of work of `elements` each: how many make a grain.
SEBLOCK_INLINE int64_t grain_of(int64_t elements) { return ceil_div(kGrain, at_least(elements, 1)); }

struct Schedule {
  bool by_sample;  // each thread takes samples through all stages; else all threads share each stage
  int64_t grain;   // samples
  int64_t group;   // samples between whose stages the weights are read once
};

// `sample_bytes` are the bytes of one sample that should stay in cache from the squeeze to the scale.
inline Schedule schedule(const Problem& problem, int64_t sample_bytes, const ThreadPool& pool) {
  const Shape& shape = problem.shape;
  const int64_t sample = shape.c * shape.s;
  const int64_t threads = at_most(pool.threads, at_least(shape.n * sample / kGrain, 1));
  const int64_t share = ceil_div(shape.n, threads);
  if (2 * share * threads > 3 * shape.n) return {false, shape.n, shape.n};

  constexpr int64_t kCacheBytes = 1 << 20;
  constexpr int64_t kGroup = 8;
  const int64_t group = at_least(at_most(kCacheBytes / sample_bytes, kGroup), 1);
  return {true, share, group};
}

}  // namespace
}  // namespace seblock::cpu
