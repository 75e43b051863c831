// The entries of driver stream.
#include "stream.cuh"

namespace seblock::cuda {

int stream_blocks() {
  return std::min({fewest_blocks<float, ForwardParams>(), fewest_blocks<float, BackwardParams>(),
                   fewest_blocks<__half, ForwardParams>(), fewest_blocks<__half, BackwardParams>(),
                   fewest_blocks<__nv_bfloat16, ForwardParams>(),
                   fewest_blocks<__nv_bfloat16, BackwardParams>()});
}

void stream(const ForwardParams& params, const Plan& plan, void* stream) {
  run_stream("stream forward", params, plan, stream);
}
void stream(const BackwardParams& params, const Plan& plan, void* stream) {
  run_stream("stream backward", params, plan, stream);
}

}  // namespace seblock::cuda
