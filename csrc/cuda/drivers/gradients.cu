// The entries of driver gradients.
#include "gradients.cuh"

namespace seblock::cuda {

void gradients(const BackwardParams& p, const Plan& plan, void* stream) {
  dispatch_weight(p.problem.dtype, p.problem.weight_dtype, [&](auto weight, auto acc) {
    using weight_t = typename decltype(weight)::type;
    using acc_t = typename decltype(acc)::type;
    const WorkspaceOf<acc_t> workspace(p.workspace, plan.workspace);
    const Shape& shape = p.problem.shape;
    launch("gradients", gradients_kernel<Gradients<weight_t, acc_t>>,
           2 * ceil_div(shape.r, kGradientTile) * ceil_div(shape.c, kGradientTile),
           kGradientShared<acc_t>, stream,
           Gradients<weight_t, acc_t>{
               shape, p.problem.activation, static_cast<const acc_t*>(p.pooled),
               static_cast<const acc_t*>(p.z1), workspace.dz1, workspace.dz2,
               static_cast<weight_t*>(p.dreduce), static_cast<weight_t*>(p.dexpand),
               static_cast<weight_t*>(p.dreduce_bias), static_cast<weight_t*>(p.dexpand_bias)},
           plan.overlap);
  });
}

}  // namespace seblock::cuda
