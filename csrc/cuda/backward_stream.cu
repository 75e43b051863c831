// Backward launcher of strategies T and R, but for the weight gradients. Executes the plan.
#include "backward_workspace.h"
#include "dispatch.cuh"
#include "kernels/stream.cuh"
#include "strategies.h"

namespace seblock::cuda {
namespace {

template <typename scalar_t, bool kTail>
void run(const BackwardParams& p, const SePlan& plan, void* stream) {
  const bool is_float = p.problem.weight_dtype == DType::float32;
  const BackwardWorkspace<float> workspace(p);
  const BackwardPass<scalar_t, kTail> pass{p.problem,
                                           {p.weights.reduce, is_float},
                                           {p.weights.expand, is_float},
                                           static_cast<const scalar_t*>(p.dy),
                                           static_cast<const scalar_t*>(p.x),
                                           static_cast<const uint8_t*>(p.mask),
                                           static_cast<const float*>(p.z1),
                                           static_cast<const float*>(p.gate),
                                           static_cast<scalar_t*>(p.dx),
                                           static_cast<scalar_t*>(p.dresidual),
                                           workspace.dz1,
                                           workspace.dz2};
  launch_stream(pass, plan, "backward", workspace.rest, stream);
}

}  // namespace

void backward_stream(const BackwardParams& p, const SePlan& plan, void* stream) {
  dispatch_narrow(p.problem.dtype, [&](auto type) {
    using scalar_t = typename decltype(type)::type;
    p.mask ? run<scalar_t, true>(p, plan, stream) : run<scalar_t, false>(p, plan, stream);
  });
}

}  // namespace seblock::cuda
