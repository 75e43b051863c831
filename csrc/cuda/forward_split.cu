// Forward launcher of strategy S: squeeze -> excite (reduce, expand) -> scale. Executes the plan.
#include "dispatch.cuh"
#include "kernels/excite.cuh"
#include "kernels/scale.cuh"
#include "kernels/squeeze.cuh"
#include "strategies.h"

namespace seblock::cuda {
namespace {

template <typename scalar_t>
void squeeze(const ForwardParams& p, const SePlan& plan, void* stream) {
  const Input<scalar_t> source{static_cast<const scalar_t*>(p.x)};
  dispatch_vec<scalar_t>(plan, [&](auto vec) {
    launch_squeeze<vec>(source, p.problem, plan, static_cast<acc_of<scalar_t>*>(p.workspace),
                        stream);
  });
}

template <typename weight_t, typename acc_t>
void excite(const ForwardParams& p, const SePlan& plan, void* stream) {
  launch_project_rows(
      ReduceStage<weight_t, acc_t>{p.problem, plan.split.splits,
                                   static_cast<acc_t>(p.problem.shape.s),
                                   static_cast<const weight_t*>(p.weights.reduce),
                                   static_cast<const weight_t*>(p.weights.reduce_bias),
                                   static_cast<const acc_t*>(p.workspace),
                                   static_cast<acc_t*>(p.pooled), static_cast<acc_t*>(p.z1)},
      stream);
  launch_project_rows(
      ExpandStage<weight_t, acc_t>{p.problem, static_cast<const weight_t*>(p.weights.expand),
                                   static_cast<const weight_t*>(p.weights.expand_bias),
                                   static_cast<const acc_t*>(p.z1), static_cast<acc_t*>(p.gate)},
      stream);
}

template <typename scalar_t>
void scale(const ForwardParams& p, const SePlan& plan, void* stream) {
  const Gated<scalar_t> map{
      static_cast<const scalar_t*>(p.x), static_cast<const acc_of<scalar_t>*>(p.gate),
      static_cast<const scalar_t*>(p.residual), static_cast<uint8_t*>(p.mask)};
  dispatch_vec<scalar_t>(plan, [&](auto vec) {
    launch_scale<vec>(map, p.problem, static_cast<scalar_t*>(p.y), stream);
  });
}

}  // namespace

void forward_split(const ForwardParams& p, const SePlan& plan, void* stream) {
  dispatch_input(p.problem.dtype,
                 [&](auto type) { squeeze<typename decltype(type)::type>(p, plan, stream); });
  dispatch_weight(p.problem.dtype, p.problem.weight_dtype, [&](auto weight, auto acc) {
    excite<typename decltype(weight)::type, typename decltype(acc)::type>(p, plan, stream);
  });
  dispatch_input(p.problem.dtype,
                 [&](auto type) { scale<typename decltype(type)::type>(p, plan, stream); });
}

}  // namespace seblock::cuda
