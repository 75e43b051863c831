// Driver resident: one launch, a block per sample. The sample (backward: dy) stays in shared memory
// from squeeze to scale, so x is read once. The stages are those of the other drivers.
#pragma once

#include "drivers.h"
#include "passes.cuh"

namespace seblock::cuda {

// A source that keeps what it loads for the scale.
template <typename Source>
struct Keeping {
  using scalar_t = typename Source::scalar_t;
  using Loaded = typename Source::Loaded;
  static constexpr int kInFlight = Source::kInFlight;
  Source source;
  Shared<Vector<scalar_t>> kept;  // [vectors]

  template <bool kAligned>
  SEBLOCK_DEVICE Loaded load(const Place<int32_t>& place) const {
    return source.template load<kAligned>(place);
  }
  template <bool kAligned>
  SEBLOCK_DEVICE void terms(Loaded& loaded, const Place<int32_t>& place, bool owner,
                            float (&out)[kVec<scalar_t>]) const {
    source.template terms<kAligned>(loaded, place, owner, out);
    if (owner) kept[place.vector] = loaded.kept();
  }
};

// A map that finds it there.
template <typename Map>
struct FromKept : Map {
  using scalar_t = typename Map::scalar_t;
  using Loaded = typename Map::Loaded;
  static constexpr bool kWrittenBefore = true;
  Shared<Vector<scalar_t>> kept;

  SEBLOCK_DEVICE FromKept(const Map& map, Shared<Vector<scalar_t>> in) : Map(map), kept(in) {}
  template <bool kAligned>
  SEBLOCK_DEVICE void load_in(const Place<int32_t>& place, Loaded& loaded) const {
    loaded.in = kept[place.vector];
  }
};

template <Layout kLayout, typename AnyPass>
SEBLOCK_KERNEL_OF(2)
resident_kernel(AnyPass p) {
  using scalar_t = typename AnyPass::scalar_t;
  const int64_t sample = block_index();
  const auto kept = shared_memory<Vector<scalar_t>>() + kScratchBytes / kAccessBytes;

  // 1. Squeeze, strip by strip.
  const Keeping<decltype(p.source)> source{p.source_of(sample), kept};
  const Squeeze<true, Keeping<decltype(p.source)>> squeeze(source, p.shape, p.tiling, p.sums,
                                                           sample);
#pragma unroll 1
  for (int strip = 0; strip < p.tiling.strips; ++strip) {
    squeeze.template run<kLayout>(strip);
    sync_threads();
  }

  // 2. The products.
  products_of_sample(p.reduce, p.expand, sample);

  // 3. Scale.
  const FromKept<decltype(p.map)> map(p.map_of(sample), kept);
  const Scale<true, FromKept<decltype(p.map)>> scale(map, p.shape, p.tiling);
#pragma unroll 1
  for (int run = 0; run < p.tiling.runs; ++run) scale.template run<kLayout>(run, [] {});
}

template <typename Params>
void run_resident(const char* name, const Params& params, const Plan& plan, void* stream) {
  dispatch_pass(params, plan, [&](const auto& pass) {
    using AnyPass = std::decay_t<decltype(pass)>;
    const auto kernel = pass.tiling.layout == Layout::nchw ? resident_kernel<Layout::nchw, AnyPass>
                                                           : resident_kernel<Layout::nhwc, AnyPass>;
    launch(name, kernel, pass.shape.n, plan.shared_bytes, stream, pass);
  });
}

}  // namespace seblock::cuda
