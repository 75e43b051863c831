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

// How many samples' worth of x the weights are.
inline int64_t weights_in_samples(const Shape& shape) { return 2 * shape.r / shape.s; }

// Samples that one thread takes through a stage together, so that the weights are read once for all
// of them: four, as many as the products work on at once, if they stay near for the scale. Where
// the weights outweigh a sample, reading them again costs more than a scale from farther away: four
// all the same, and twelve where they outweigh four twice. Weights that x would drive out of the
// cache are read once: all samples (RegNetY-16GF's last stage on Zen 4: a fifth less time).
inline int64_t group_size(const Shape& shape, int64_t element_bytes) {
  constexpr int64_t kStaying = 1 << 20;  // weights, 4 MB of float32
  if (2 * shape.r * shape.c > kStaying && weights_in_samples(shape) >= 8) return shape.n;
  if (weights_in_samples(shape) >= 8) return 12;
  if (weights_in_samples(shape) >= 1) return 4;
  return at_least(at_most((1 << 20) / (shape.c * shape.s * element_bytes), 4), 1);
}

// Whether the next group of samples is worth fetching while this one is scaled: its products do not
// drive it out of the cache again.
inline bool worth_fetching(const Shape& shape) { return weights_in_samples(shape) < 1; }

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
