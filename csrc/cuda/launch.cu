// The plan, executed.
#include "drivers/drivers.h"
#include "launch.h"

namespace seblock::cuda {
namespace {

template <typename Params>
void drive(const Params& params, const Plan& plan, void* stream) {
  if (params.problem.shape.n == 0) return;
  switch (plan.strategy) {
    case Strategy::split:
      return split(params, plan, stream);
    case Strategy::stream:
      return cuda::stream(params, plan, stream);
    case Strategy::resident:
      return resident(params, plan, stream);
  }
}

}  // namespace

void forward(const ForwardParams& params, const Plan& plan, void* stream) {
  drive(params, plan, stream);
}

void backward(const BackwardParams& params, const Plan& plan, void* stream) {
  drive(params, plan, stream);
  gradients(params, plan, stream);  // with no samples it writes zeros
}

}  // namespace seblock::cuda
