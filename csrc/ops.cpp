// The operators: schemas, registration, and from tensors to plain structs. The last file that sees
// torch.
//
// LibTorch stable ABI only, so that one built library loads in every torch from 2.10 on, CPU or
// CUDA build. Checks here are cheap and short; seblock_cuda/checks.py works out the full message
// after a refusal.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "cpu/cpu.h"
#include "plan.h"
#include "se_types.h"
#include "tensors.h"

#ifdef SEBLOCK_WITH_CUDA
#include "cuda/launch.h"
#endif

// Weak: only a CUDA build of torch has it.
extern "C" __attribute__((weak)) AOTITorchError
aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace seblock {
namespace {

// ---- arguments ----

Shape check_input(const Tensor& x) {
  require(x.dim() >= 3 && x.dim() <= kMaxDims,
          "input must be [N, C, *spatial] with 1 to 3 spatial dimensions");
  Shape shape{x.size(0), x.size(1), 1, 0};
  for (int64_t dim = 2; dim < x.dim(); ++dim) shape.s *= x.size(dim);
  require(shape.c > 0 && shape.s > 0, "input must have channels and no empty spatial dimension");
  return shape;
}

void check_parameter(const Tensor& parameter, int64_t height, int64_t width, const Tensor& x) {
  const bool bias = width == 0;
  require((bias ? parameter.dim() == 1 : parameter.dim() >= 2) && parameter.size(0) == height &&
              (bias || parameter.size(1) == width) &&
              parameter.numel() == height * (bias ? 1 : width),
          "weights must be [R, C] and [C, R], biases [R] and [C]");
  require(parameter.device() == x.device(), "all tensors must be on one device");
  const DType dtype = dtype_of(parameter);
  require(dtype == DType::float32 || dtype == dtype_of(x),
          "weights must be float32 or of input's dtype");
}

// The parameters as the kernels read them: dense, and all of one dtype (mixed ones in that of the
// sums).
class Parameters {
 public:
  Parameters(const Tensor& x, Shape& shape, const Tensor& reduce, const Tensor& expand,
             const OptionalTensor& reduce_bias = {}, const OptionalTensor& expand_bias = {}) {
    require(reduce.dim() >= 2 && reduce.size(0) > 0,
            "reduce_weight must be [R, C] with R at least 1");
    shape.r = reduce.size(0);
    check_parameter(reduce, shape.r, shape.c, x);
    check_parameter(expand, shape.c, shape.r, x);
    if (reduce_bias) check_parameter(*reduce_bias, shape.r, 0, x);
    if (expand_bias) check_parameter(*expand_bias, shape.c, 0, x);

    dtype_ = dtype_of(reduce);
    for (const Tensor* other :
         {&expand, reduce_bias ? &*reduce_bias : nullptr, expand_bias ? &*expand_bias : nullptr}) {
      if (other && dtype_of(*other) != dtype_) dtype_ = acc_dtype_of(dtype_of(x));
    }
    reduce_ = dense(reduce);
    expand_ = dense(expand);
    if (reduce_bias) reduce_bias_ = dense(*reduce_bias);
    if (expand_bias) expand_bias_ = dense(*expand_bias);
  }

  DType dtype() const { return dtype_; }
  Weights weights() const {
    return {reduce_.const_data_ptr(), expand_.const_data_ptr(),
            reduce_bias_ ? reduce_bias_->const_data_ptr() : nullptr,
            expand_bias_ ? expand_bias_->const_data_ptr() : nullptr};
  }
  Tensor empty_like_reduce() const { return empty_like(reduce_, dtype_); }
  Tensor empty_like_expand() const { return empty_like(expand_, dtype_); }

 private:
  Tensor dense(const Tensor& parameter) const {
    const Tensor cast = dtype_of(parameter) == dtype_
                            ? parameter
                            : torch::stable::to(parameter, scalar_type_of(dtype_));
    return cast.is_contiguous() ? cast : torch::stable::contiguous(cast);
  }

  DType dtype_;
  Tensor reduce_;  // [R, C, 1...]
  Tensor expand_;  // [C, R, 1...]
  OptionalTensor reduce_bias_;
  OptionalTensor expand_bias_;
};

Activation activation_of(int64_t code) {
  require(code >= 0 && code <= static_cast<int64_t>(Activation::leaky_relu), "unknown activation");
  return static_cast<Activation>(code);
}

Gate gate_of(int64_t code) {
  require(code >= 0 && code <= static_cast<int64_t>(Gate::relu), "unknown gate");
  return static_cast<Gate>(code);
}

void check_saved(const Tensor& tensor, int64_t width, const Shape& shape, const Tensor& x) {
  require(tensor.numel() == shape.n * width && tensor.is_contiguous() &&
              tensor.device() == x.device() && dtype_of(tensor) == acc_dtype_of(dtype_of(x)),
          "pooled, z1 and gate must be what se_forward returned");
}

// ---- back ends: how each device allocates its workspace and runs ----

struct CpuBackend {
  static void parallel_for(int64_t begin, int64_t end, int64_t grain, cpu::ThreadPool::Body body,
                           void* context) {
    TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, body, context));
  }
  static cpu::ThreadPool pool() {
    return {static_cast<int>(torch::stable::get_num_threads()), parallel_for};
  }

  static void run(ForwardParams& params, const Tensor& x) {
    const Tensor workspace = bytes(cpu::forward_workspace_bytes(params.problem), x);
    params.workspace = workspace.mutable_data_ptr();
    cpu::forward(params, pool());
  }
  static void run(BackwardParams& params, const Tensor& x) {
    const Tensor workspace = bytes(cpu::backward_workspace_bytes(params.problem), x);
    params.workspace = workspace.mutable_data_ptr();
    cpu::backward(params, pool());
  }
  static Tensor bytes(int64_t count, const Tensor& like) {
    return empty_vector((count + 7) / 8, DType::float64, like);
  }
};

#ifdef SEBLOCK_WITH_CUDA
struct CudaBackend {
  static bool aligned(const void* a, const void* b) {
    return (reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b)) % kAccessBytes == 0;
  }
  static void* stream(const Tensor& x) {
    require(aoti_torch_get_current_cuda_stream != nullptr, "this torch is a CPU build");
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
    return stream;
  }
  template <typename Params>
  static void execute(Params& params, const SePlan& plan, int64_t workspace_bytes, const Tensor& x,
                      void (*launcher)(const Params&, const SePlan&, void*)) {
    const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
    cuda::require_usable(x.get_device_index());
    const Tensor workspace = CpuBackend::bytes(workspace_bytes, x);
    params.workspace = workspace.mutable_data_ptr();
    launcher(params, plan, stream(x));
  }
  static void run(ForwardParams& params, const Tensor& x) {
    const SePlan chosen = plan(params.problem, aligned(params.x, params.y));
    execute(params, chosen, chosen.forward_workspace_bytes, x, cuda::forward);
  }
  static void run(BackwardParams& params, const Tensor& x) {
    const SePlan chosen =
        plan(params.problem, aligned(params.x, params.dy) && aligned(params.dx, params.dx));
    execute(params, chosen, chosen.backward_workspace_bytes, x, cuda::backward);
  }
};
#endif

// ---- the operators ----

template <typename Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> se_forward(const Tensor& input,
                                                      const Tensor& reduce_weight,
                                                      const Tensor& expand_weight,
                                                      const OptionalTensor& reduce_bias,
                                                      const OptionalTensor& expand_bias,
                                                      int64_t activation, int64_t gate_function) {
  Shape shape = check_input(input);
  const Parameters parameters(input, shape, reduce_weight, expand_weight, reduce_bias, expand_bias);
  const Layout layout = layout_of(input);
  const Tensor x = in_layout(layout, input);
  const DType dtype = dtype_of(x);
  const DType acc = acc_dtype_of(dtype);

  Tensor y = empty_like(x, dtype);
  Tensor pooled = empty_matrix(shape.n, shape.c, acc, x);
  Tensor z1 = empty_matrix(shape.n, shape.r, acc, x);
  Tensor gate = empty_matrix(shape.n, shape.c, acc, x);
  ForwardParams params{
      {shape, layout, dtype, parameters.dtype(), activation_of(activation), gate_of(gate_function)},
      parameters.weights(),
      x.const_data_ptr(),
      y.mutable_data_ptr(),
      pooled.mutable_data_ptr(),
      z1.mutable_data_ptr(),
      gate.mutable_data_ptr(),
      nullptr};
  Backend::run(params, x);
  return {y, pooled, z1, gate};
}

template <typename Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> se_backward(
    const Tensor& output_gradient, const Tensor& input, const Tensor& reduce_weight,
    const Tensor& expand_weight, const Tensor& pooled, const Tensor& z1, const Tensor& gate,
    int64_t activation, int64_t gate_function) {
  Shape shape = check_input(input);
  const Parameters parameters(input, shape, reduce_weight, expand_weight);
  require(output_gradient.dim() == input.dim(), "the gradient of y must have the shape of input");
  for (int64_t dim = 0; dim < input.dim(); ++dim) {
    require(output_gradient.size(dim) == input.size(dim),
            "the gradient of y must have the shape of input");
  }
  require(
      output_gradient.device() == input.device() && dtype_of(output_gradient) == dtype_of(input),
      "the gradient of y must have the dtype and device of input");
  check_saved(pooled, shape.c, shape, input);
  check_saved(z1, shape.r, shape, input);
  check_saved(gate, shape.c, shape, input);

  const Layout layout = layout_of(input);
  const Tensor x = in_layout(layout, input);
  const Tensor dy = in_layout(layout, output_gradient);
  const DType dtype = dtype_of(x);
  const DType weight_dtype = parameters.dtype();

  Tensor dx = empty_like(x, dtype);
  Tensor dreduce = parameters.empty_like_reduce();
  Tensor dexpand = parameters.empty_like_expand();
  Tensor dreduce_bias = empty_vector(shape.r, weight_dtype, x);
  Tensor dexpand_bias = empty_vector(shape.c, weight_dtype, x);
  BackwardParams params{
      {shape, layout, dtype, weight_dtype, activation_of(activation), gate_of(gate_function)},
      parameters.weights(),
      dy.const_data_ptr(),
      x.const_data_ptr(),
      pooled.const_data_ptr(),
      z1.const_data_ptr(),
      gate.const_data_ptr(),
      dx.mutable_data_ptr(),
      dreduce.mutable_data_ptr(),
      dexpand.mutable_data_ptr(),
      dreduce_bias.mutable_data_ptr(),
      dexpand_bias.mutable_data_ptr(),
      nullptr};
  Backend::run(params, x);
  return {dx, dreduce, dexpand, dreduce_bias, dexpand_bias};
}

std::string cpu_capability() { return cpu::capability(); }

}  // namespace
}  // namespace seblock

STABLE_TORCH_LIBRARY(seblock_cuda, m) {
  m.def("cpu_capability() -> str");
  m.def(
      "se_forward(Tensor x, Tensor reduce_weight, Tensor expand_weight, Tensor? reduce_bias, "
      "Tensor? expand_bias, "
      "int activation, int gate) -> (Tensor, Tensor, Tensor, Tensor)");  // y, pooled, z1, gate
  m.def(
      "se_backward(Tensor dy, Tensor x, Tensor reduce_weight, Tensor expand_weight, Tensor pooled, "
      "Tensor z1, "
      "Tensor gates, int activation, int gate) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");  // dx,
                                                                                               // dW1,
                                                                                               // dW2,
                                                                                               // db1,
                                                                                               // db2
}

STABLE_TORCH_LIBRARY_IMPL(seblock_cuda, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&seblock::cpu_capability));
}

STABLE_TORCH_LIBRARY_IMPL(seblock_cuda, CPU, m) {
  m.impl("se_forward", TORCH_BOX(&seblock::se_forward<seblock::CpuBackend>));
  m.impl("se_backward", TORCH_BOX(&seblock::se_backward<seblock::CpuBackend>));
}

#ifdef SEBLOCK_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(seblock_cuda, CUDA, m) {
  m.impl("se_forward", TORCH_BOX(&seblock::se_forward<seblock::CudaBackend>));
  m.impl("se_backward", TORCH_BOX(&seblock::se_backward<seblock::CudaBackend>));
}
#endif
