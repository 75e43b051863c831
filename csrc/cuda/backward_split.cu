// Backward launcher of strategy S: squeeze(dy * x) -> excite gradient (expand, reduce) ->
// scale(dy). Executes the plan.
#include "backward_workspace.h"
#include "dispatch.cuh"
#include "kernels/excite.cuh"
#include "kernels/scale.cuh"
#include "kernels/squeeze.cuh"
#include "strategies.h"

namespace seblock::cuda {
namespace {

template <typename scalar_t>
void squeeze(const BackwardParams& p, const SePlan& plan, void* stream) {
  const BackwardWorkspace<acc_of<scalar_t>> workspace(p);
  const InputTimesGradient<scalar_t> source{
      static_cast<const scalar_t*>(p.x), static_cast<const scalar_t*>(p.dy),
      static_cast<const uint8_t*>(p.mask), static_cast<scalar_t*>(p.dresidual)};
  dispatch_vec<scalar_t>(plan, [&](auto vec) {
    launch_squeeze<vec>(source, p.problem, plan, workspace.partial, stream);
  });
}

template <typename weight_t, typename acc_t>
void excite(const BackwardParams& p, const SePlan& plan, void* stream) {
  const BackwardWorkspace<acc_t> workspace(p);
  launch_project_columns(
      ExpandGradientStage<weight_t, acc_t>{
          p.problem, plan.split.splits, static_cast<const weight_t*>(p.weights.expand),
          workspace.partial, static_cast<const acc_t*>(p.gate), static_cast<const acc_t*>(p.z1),
          workspace.dz2, workspace.dz1},
      stream);
  launch_project_columns(
      ReduceGradientStage<weight_t, acc_t>{p.problem, static_cast<acc_t>(p.problem.shape.s),
                                           static_cast<const weight_t*>(p.weights.reduce),
                                           workspace.dz1, workspace.shift},
      stream);
}

template <typename scalar_t>
void scale(const BackwardParams& p, const SePlan& plan, void* stream) {
  using acc_t = acc_of<scalar_t>;
  const GatedGradient<scalar_t> map{static_cast<const scalar_t*>(p.mask ? p.dresidual : p.dy),
                                    static_cast<const acc_t*>(p.gate),
                                    BackwardWorkspace<acc_t>(p).shift};
  dispatch_vec<scalar_t>(plan, [&](auto vec) {
    launch_scale<vec>(map, p.problem, static_cast<scalar_t*>(p.dx), stream);
  });
}

}  // namespace

void backward_split(const BackwardParams& p, const SePlan& plan, void* stream) {
  dispatch_input(p.problem.dtype,
                 [&](auto type) { squeeze<typename decltype(type)::type>(p, plan, stream); });
  dispatch_weight(p.problem.dtype, p.problem.weight_dtype, [&](auto weight, auto acc) {
    excite<typename decltype(weight)::type, typename decltype(acc)::type>(p, plan, stream);
  });
  dispatch_input(p.problem.dtype,
                 [&](auto type) { scale<typename decltype(type)::type>(p, plan, stream); });
}

}  // namespace seblock::cuda
