// The entries of driver split.
#include "split.cuh"

namespace seblock::cuda {

void split(const ForwardParams& params, const Plan& plan, void* stream) {
  run_split(params, plan, stream);
}
void split(const BackwardParams& params, const Plan& plan, void* stream) {
  run_split(params, plan, stream);
}

}  // namespace seblock::cuda
