// One direction of a problem as the drivers run it: what each of the four stages is to do.
#pragma once

#include "dispatch.cuh"
#include "kernels/expand.cuh"
#include "kernels/gradients.cuh"
#include "kernels/reduce.cuh"
#include "kernels/scale.cuh"
#include "kernels/squeeze.cuh"
#include "plan.h"

namespace seblock::cuda {

template <typename SourceOf>
struct Squeezing {
  using Source = SourceOf;
  using scalar_t = typename Source::scalar_t;
  Shape shape;
  Tiling tiling;
  int64_t vectors;  // of a sample
  Source source;
  Sums<acc_of<scalar_t>> sums;

  SEBLOCK_DEVICE Source source_of(int64_t sample) const {
    return source.at(sample * shape.c * shape.s, sample * vectors);
  }
};

template <typename Source, typename ReduceStage, typename ExpandStage, typename Map>
struct Pass : Squeezing<Source> {
  ReduceStage reduce;
  ExpandStage expand;
  Map map;

  SEBLOCK_DEVICE Map map_of(int64_t sample) const {
    const Shape& shape = this->shape;
    return map.at(sample * shape.c * shape.s, sample * this->vectors, sample * shape.c);
  }
};

// The parts of a workspace.
template <typename acc_t>
struct WorkspaceOf {
  uint32_t* counters;
  acc_t *dz2, *dz1, *shift, *sums;

  WorkspaceOf(void* workspace, const Workspace& sizes) {
    auto* at = static_cast<char*>(workspace);
    const auto take = [&](int64_t bytes) {
      at += bytes;
      return reinterpret_cast<acc_t*>(at - bytes);
    };
    counters = reinterpret_cast<uint32_t*>(take(sizes.counters));
    dz2 = take(sizes.dz2);
    dz1 = take(sizes.dz1);
    shift = take(sizes.shift);
    sums = take(sizes.sums);
  }
};

// In rows of `pitch` elements; a bias has none.
template <typename scalar>
Weight<scalar> weight_of(const Problem& problem, const void* data, int64_t pitch = 1) {
  const auto bytes = static_cast<uintptr_t>(kTogether * bytes_of(problem.weight_dtype));
  const bool by_fours = pitch % kTogether == 0 && reinterpret_cast<uintptr_t>(data) % bytes == 0;
  return {data, problem.weight_dtype == DType::float32, by_fours};
}

template <typename scalar, bool kTail>
auto pass_of(const ForwardParams& p, const Plan& plan) {
  using acc_t = acc_of<scalar>;
  const Problem& problem = p.problem;
  const Shape& shape = problem.shape;
  const Tiling tiling(problem);
  const WorkspaceOf<acc_t> workspace(p.workspace, plan.workspace);
  const Sums<acc_t> sums{workspace.sums, shape.n, shape.c};
  const Deal reduce(Order::rows, shape.c, shape.r), expand(Order::rows, shape.r, shape.c);
  const auto* x = static_cast<const scalar*>(p.x);
  auto* z1 = static_cast<acc_t*>(p.z1);
  auto* gate = static_cast<acc_t*>(p.gate);
  return Pass<Input<scalar>, Reduce<scalar>, Expand<scalar>, Gated<scalar, kTail>>{
      {shape, tiling, vectors_per_sample(problem), {x}, sums},
      {shape, reduce, reduce.tiles(shape.r, 1), tiling.parts,
       weight_of<scalar>(problem, p.weights.reduce, shape.c),
       weight_of<scalar>(problem, p.weights.reduce_bias), sums, static_cast<acc_t*>(p.pooled), z1},
      {shape, expand, expand.tiles(shape.c, 1), problem.activation, problem.gate,
       weight_of<scalar>(problem, p.weights.expand, shape.r),
       weight_of<scalar>(problem, p.weights.expand_bias), z1, gate},
      {x, gate, static_cast<const scalar*>(p.residual), static_cast<uint8_t*>(p.mask),
       static_cast<scalar*>(p.y)}};
}

template <typename scalar, bool kMasked>
auto pass_of(const BackwardParams& p, const Plan& plan) {
  using acc_t = acc_of<scalar>;
  const Problem& problem = p.problem;
  const Shape& shape = problem.shape;
  const Tiling tiling(problem);
  const WorkspaceOf<acc_t> workspace(p.workspace, plan.workspace);
  const Sums<acc_t> sums{workspace.sums, shape.n, shape.c};
  const Deal reduce(Order::columns, shape.c, shape.r), expand(Order::columns, shape.r, shape.c);
  const auto* gate = static_cast<const acc_t*>(p.gate);
  return Pass<InputTimesGradient<scalar, kMasked>, ReduceGradient<scalar>, ExpandGradient<scalar>,
              GatedGradient<scalar, kMasked>>{
      {shape,
       tiling,
       vectors_per_sample(problem),
       {static_cast<const scalar*>(p.x), static_cast<const scalar*>(p.dy),
        static_cast<const uint8_t*>(p.mask), static_cast<scalar*>(p.dresidual)},
       sums},
      {shape, reduce, reduce.tiles(shape.r, 1), tiling.parts, problem.activation, problem.gate,
       weight_of<scalar>(problem, p.weights.expand, shape.r), sums, gate,
       static_cast<const acc_t*>(p.z1), workspace.dz2, workspace.dz1},
      {shape, expand, expand.tiles(shape.c, 1),
       weight_of<scalar>(problem, p.weights.reduce, shape.c), workspace.dz1, workspace.shift},
      {static_cast<const scalar*>(p.mask ? p.dresidual : p.dy), gate, workspace.shift,
       static_cast<scalar*>(p.dx)}};
}

// Calls f(pass) with the pass of x's dtype, for dtypes of 32 bits and fewer.
template <typename F>
void dispatch_pass(const ForwardParams& p, const Plan& plan, const F& f) {
  dispatch_narrow(p.problem.dtype, [&](auto type) {
    using scalar_t = typename decltype(type)::type;
    p.residual ? f(pass_of<scalar_t, true>(p, plan)) : f(pass_of<scalar_t, false>(p, plan));
  });
}
template <typename F>
void dispatch_pass(const BackwardParams& p, const Plan& plan, const F& f) {
  dispatch_narrow(p.problem.dtype, [&](auto type) {
    using scalar_t = typename decltype(type)::type;
    p.mask ? f(pass_of<scalar_t, true>(p, plan)) : f(pass_of<scalar_t, false>(p, plan));
  });
}

// Any dtype, without a kernel of its own for problems without a tail: speed is no concern here.
template <typename Params, typename F>
void dispatch_general_pass(const Params& p, const Plan& plan, const F& f) {
  dispatch_input(p.problem.dtype,
                 [&](auto type) { f(pass_of<typename decltype(type)::type, true>(p, plan)); });
}

}  // namespace seblock::cuda
