// Driver split: a launch per stage. Runs any problem; the other drivers are checked against it.
//
//   squeeze   block = strip of a sample
//   reduce    block = group of samples x tile of outputs; expand alike
//   scale     block = strip or run of a sample, the last one first: what the squeeze read last is
//             still in L2
#pragma once

#include "drivers.h"
#include "passes.cuh"

namespace seblock::cuda {

// Which sample a block has, and which of its tasks.
struct Task {
  int64_t sample;
  int index;
};
SEBLOCK_DEVICE Task task_of(int block, const Divisor32& by_tasks, int tasks) {
  const uint32_t sample = by_tasks.divide(static_cast<uint32_t>(block));
  return {sample, static_cast<int>(block - sample * tasks)};
}

template <bool kAligned, Layout kLayout, typename Source>
SEBLOCK_KERNEL_OF(4)
squeeze_kernel(Squeezing<Source> p) {
  let_next_launch_begin();
  const Task task = task_of(block_index(), p.tiling.by_strips, p.tiling.strips);
  const Source source = p.source_of(task.sample);
  const Squeeze<kAligned, Source> squeeze(source, p.shape, p.tiling, p.sums, task.sample);
  squeeze.template run<kLayout>(task.index);
}

template <typename Stage>
struct ProductParams {
  Stage stage;
  int64_t samples;
  int group;
  Divisor32 by_tiles;
  int tiles;
};

template <typename Stage>
SEBLOCK_KERNEL_OF(2)
product_kernel(ProductParams<Stage> p) {
  let_next_launch_begin();
  await_launch_before();
  const Task task = task_of(block_index(), p.by_tiles, p.tiles);  // a group in a sample's place
  const int64_t sample = task.sample * p.group, left = p.samples - sample;
  const int samples = left < p.group ? static_cast<int>(left) : p.group;
  const auto run = [&](auto most) {
    Product<decltype(most)::value, Stage>(p.stage, sample, samples, task.index == 0)
        .run(task.index, task.index + 1);
  };
  if (p.group == 1) return run(std::integral_constant<int, 1>{});
  if (p.group <= kMostSamples / 2) return run(std::integral_constant<int, kMostSamples / 2>{});
  if constexpr (sizeof(typename Stage::acc_t) == 4)
    run(std::integral_constant<int, kMostSamples>{});
}

template <bool kAligned, Layout kLayout, typename AnyPass>
SEBLOCK_KERNEL_OF(4)
scale_kernel(AnyPass p) {
  let_next_launch_begin();
  const Task task = task_of(grid_blocks() - 1 - block_index(), p.tiling.by_runs, p.tiling.runs);
  const auto map = p.map_of(task.sample);
  const Scale<kAligned, decltype(p.map)> scale(map, p.shape, p.tiling);
  scale.template run<kLayout>(task.index, [] { await_launch_before(); });
}

template <typename Stage>
void launch_product(const Stage& stage, const Plan& plan, void* stream) {
  const int tiles = stage.deal.tiles(stage.height(), plan.group);
  const ProductParams<Stage> params{stage, stage.shape.n, plan.group, Divisor32(tiles), tiles};
  launch(Stage::kName, product_kernel<Stage>, ceil_div(stage.shape.n, plan.group) * tiles,
         kProductShared, stream, params, plan.overlap);
}

template <bool kAligned, Layout kLayout, typename AnyPass>
void launch_all(const AnyPass& pass, const Plan& plan, void* stream) {
  using Source = typename AnyPass::Source;
  const int64_t n = pass.shape.n;
  launch<Squeezing<Source>>(Source::kName, squeeze_kernel<kAligned, kLayout, Source>,
                            n * pass.tiling.strips, kSqueezeShared, stream, pass);
  launch_product(pass.reduce, plan, stream);
  launch_product(pass.expand, plan, stream);
  launch(decltype(pass.map)::kName, scale_kernel<kAligned, kLayout, AnyPass>, n * pass.tiling.runs,
         0, stream, pass, plan.overlap);
}

template <bool kAligned, typename AnyPass>
void launch_layout(const AnyPass& pass, const Plan& plan, void* stream) {
  pass.tiling.layout == Layout::nchw ? launch_all<kAligned, Layout::nchw>(pass, plan, stream)
                                     : launch_all<kAligned, Layout::nhwc>(pass, plan, stream);
}

template <typename Params>
void run_split(const Params& params, const Plan& plan, void* stream) {
  if (plan.vectors) {
    dispatch_pass(params, plan, [&](const auto& pass) { launch_layout<true>(pass, plan, stream); });
  } else {
    dispatch_general_pass(params, plan,
                          [&](const auto& pass) { launch_layout<false>(pass, plan, stream); });
  }
}

}  // namespace seblock::cuda
