// The entries of driver resident.
#include "resident.cuh"

namespace seblock::cuda {

void resident(const ForwardParams& params, const Plan& plan, void* stream) {
  run_resident("resident forward", params, plan, stream);
}
void resident(const BackwardParams& params, const Plan& plan, void* stream) {
  run_resident("resident backward", params, plan, stream);
}

}  // namespace seblock::cuda
