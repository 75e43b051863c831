// How the work is divided among threads: by whole samples where there are enough of them, else
// stage by stage over channels, rows and weights.
#pragma once

#include "../cpu.h"
#include "../vec/vec.h"
#include "../workspace.h"

namespace seblock::cpu {
namespace {

// Elements of work below which another thread costs more than it brings: about 3 us of streaming.
constexpr int64_t kGrain = 32768;

SEBLOCK_INLINE int64_t at_most(int64_t value, int64_t limit) {
  return value < limit ? value : limit;
}
SEBLOCK_INLINE int64_t at_least(int64_t value, int64_t limit) {
  return value > limit ? value : limit;
}

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
SEBLOCK_INLINE int64_t grain_of(int64_t elements) {
  return ceil_div(kGrain, at_least(elements, 1));
}

struct Schedule {
  // Each thread takes samples through all stages; else all threads share each stage.
  bool by_sample;
  int64_t grain;  // samples
  int64_t group;  // samples for which the weights are read once
};

// Samples that one thread takes through a stage together, so that the weights are read once for all
// of them: four, as many as the products work on at once, while they stay near for the scale. Where
// the weights outweigh a sample, reading them again costs more than a scale from farther away.
// Measured, one thread, Zen 5 with 1 MB of L2, forward plus backward, groups of 1, 4, 8:
//   41 x 1024 x 14 x 14, R =  64:  6.6,  7.1,  8.3 ms
//   83 x 2048 x  7 x  7, R = 128: 12.9, 10.9, 11.3 ms
//   21 x 2688 x 12 x 12, R = 112:  8.7, 10.1, 13.8 ms
inline int64_t group_size(const Shape& shape, int64_t element_bytes) {
  const int64_t sample_bytes = shape.c * shape.s * element_bytes;
  const int64_t weight_bytes = 2 * shape.c * shape.r * element_bytes;
  const int64_t room = weight_bytes > sample_bytes ? 5 << 19 : 1 << 20;
  return at_least(at_most(room / sample_bytes, 4), 1);
}

inline Schedule schedule(const Problem& problem, const ThreadPool& pool) {
  const Shape& shape = problem.shape;
  const int64_t worth = at_least(shape.n * shape.c * shape.s / kGrain, 1);
  const int64_t threads = at_least(at_most(pool.threads, worth), 1);
  const int64_t share = ceil_div(shape.n, threads);
  // Too few samples to occupy the threads evenly.
  if (2 * share * threads > 3 * shape.n) return {false, shape.n, shape.n};
  const int64_t element_bytes = problem.dtype == DType::float64   ? 8
                                : problem.dtype == DType::float32 ? 4
                                                                  : 2;
  return {true, share, group_size(shape, element_bytes)};
}

}  // namespace
}  // namespace seblock::cpu
