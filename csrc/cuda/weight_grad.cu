// Launcher of the weight gradients.
#include "backward_workspace.h"
#include "dispatch.cuh"
#include "kernels/weight_grad.cuh"
#include "strategies.h"

namespace seblock::cuda {

void weight_grad(const BackwardParams& p, void* stream) {
  dispatch_weight(p.problem.dtype, p.problem.weight_dtype, [&](auto weight, auto acc) {
    using weight_t = typename decltype(weight)::type;
    using acc_t = typename decltype(acc)::type;
    const BackwardWorkspace<acc_t> workspace(p);
    launch_weight_grad(
        WeightGradParams<weight_t, acc_t>{
            p.problem.shape, p.problem.activation, static_cast<const acc_t*>(p.pooled),
            static_cast<const acc_t*>(p.z1), workspace.dz1, workspace.dz2,
            static_cast<weight_t*>(p.dreduce), static_cast<weight_t*>(p.dexpand),
            static_cast<weight_t*>(p.dreduce_bias), static_cast<weight_t*>(p.dexpand_bias)},
        stream);
  });
}

}  // namespace seblock::cuda
