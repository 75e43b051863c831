// Forward launcher of strategies T and R. Executes the plan.
#include "dispatch.cuh"
#include "kernels/stream.cuh"
#include "strategies.h"

namespace seblock::cuda {
namespace {

template <typename scalar_t, bool kTail>
void run(const ForwardParams& p, const SePlan& plan, void* stream) {
  const bool is_float = p.problem.weight_dtype == DType::float32;
  const ForwardPass<scalar_t, kTail> pass{p.problem,
                                          {p.weights.reduce, is_float},
                                          {p.weights.expand, is_float},
                                          {p.weights.reduce_bias, is_float},
                                          {p.weights.expand_bias, is_float},
                                          static_cast<const scalar_t*>(p.x),
                                          static_cast<const scalar_t*>(p.residual),
                                          static_cast<scalar_t*>(p.y),
                                          static_cast<uint8_t*>(p.mask),
                                          static_cast<float*>(p.pooled),
                                          static_cast<float*>(p.z1),
                                          static_cast<float*>(p.gate)};
  launch_stream(pass, plan, "forward", p.workspace, stream);
}

}  // namespace

void forward_stream(const ForwardParams& p, const SePlan& plan, void* stream) {
  dispatch_narrow(p.problem.dtype, [&](auto type) {
    using scalar_t = typename decltype(type)::type;
    p.residual ? run<scalar_t, true>(p, plan, stream) : run<scalar_t, false>(p, plan, stream);
  });
}

}  // namespace seblock::cuda
