// The table of tuned plans.
#include "tuned.h"

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <shared_mutex>

namespace seblock {
namespace {

// All that a plan depends on but N, activation and gate. The layer's numbers come first: they
// differ soonest.
using Layer = std::array<int64_t, 12>;
using ByBatch = std::map<int64_t, Tuned>;

struct Table {
  std::shared_mutex mutex;
  std::map<Layer, ByBatch> layers;
};

Table& table() {
  static Table& all = *new Table;  // calls may come while the process ends
  return all;
}

Layer layer_of(const DeviceLimits& device, const Problem& problem, Direction direction,
               bool aligned) {
  const Shape& shape = problem.shape;
  return {shape.c,
          shape.s,
          shape.r,
          static_cast<int64_t>(direction),
          static_cast<int64_t>(problem.dtype),
          static_cast<int64_t>(problem.weight_dtype),
          static_cast<int64_t>(problem.layout),
          static_cast<int64_t>(problem.tail),
          aligned,
          device.capability,
          device.multiprocessors,
          device.l2_bytes};
}

}  // namespace

void use_plan(const DeviceLimits& device, const Problem& problem, Direction direction, bool aligned,
              const Tuned& tuned) {
  const std::unique_lock lock(table().mutex);
  table().layers[layer_of(device, problem, direction, aligned)][problem.shape.n] = tuned;
}

void forget_plans() {
  const std::unique_lock lock(table().mutex);
  table().layers.clear();
}

Tuned tuned_plan(const DeviceLimits& device, const Problem& problem, Direction direction,
                 bool aligned) {
  const std::shared_lock lock(table().mutex);
  if (table().layers.empty()) return {};
  const auto layer = table().layers.find(layer_of(device, problem, direction, aligned));
  if (layer == table().layers.end()) return {};
  const ByBatch& batches = layer->second;
  const int64_t n = problem.shape.n;
  // by their ratio, of which 2 is the most: N = 0 is nobody's neighbour
  auto nearest = batches.lower_bound(n);
  if (nearest == batches.end() || (nearest->first != n && nearest != batches.begin() &&
                                   n * n < nearest->first * std::prev(nearest)->first)) {
    nearest = std::prev(nearest);
  }
  if (nearest->first > 2 * n || n > 2 * nearest->first) return {};
  Tuned found = nearest->second;
  if (found.forced.lag)
    found.forced.lag = static_cast<int>(std::min<int64_t>(*found.forced.lag, n));
  return found;
}

}  // namespace seblock
