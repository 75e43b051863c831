// The plan's strategy, executed.
#include "launch.h"
#include "strategies.h"

namespace seblock::cuda {

void forward(const ForwardParams& p, const SePlan& plan, void* stream) {
  if (p.problem.shape.n == 0) return;
  const auto run = plan.strategy == Strategy::split ? forward_split : forward_stream;
  run(p, plan, stream);
}

void backward(const BackwardParams& p, const SePlan& plan, void* stream) {
  if (p.problem.shape.n > 0) {
    const auto run = plan.strategy == Strategy::split ? backward_split : backward_stream;
    run(p, plan, stream);
  }
  weight_grad(p, stream);  // with no samples it writes zeros
}

}  // namespace seblock::cuda
