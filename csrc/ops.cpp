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

#include <string>
#include <tuple>

#include "arguments.h"
#include "cpu/cpu.h"
#include "plan.h"
#include "plan_options.h"
#include "se_types.h"
#include "tensors.h"
#include "tuned.h"

#ifdef SEBLOCK_WITH_CUDA
#include <dlfcn.h>

#include "cuda/launch.h"
#endif

namespace seblock {
namespace {

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
// torch's current stream. Its library cannot be linked, for this one loads in CPU builds of torch
// too, and as Python loads it, none of our undefined symbols is looked up there: found by name.
using CurrentStream = AOTITorchError (*)(int32_t device_index, void** stream);
constexpr const char* kCurrentStream = "aoti_torch_get_current_cuda_stream";

CurrentStream current_stream() {  // null: there is none
  static const auto function = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return reinterpret_cast<CurrentStream>(library ? dlsym(library, kCurrentStream) : nullptr);
  }();
  return function;
}

std::string cuda_problem() {
  if (current_stream()) return cuda::driver_problem();
  return std::string("this torch has no ") + kCurrentStream +
         ": it is a CPU build, or not one that seblock_cuda knows";
}

struct CudaBackend {
  static bool aligned(std::initializer_list<const void*> tensors) {
    for (const void* tensor : tensors) {
      if (reinterpret_cast<uintptr_t>(tensor) % kAccessBytes != 0) return false;
    }
    return true;
  }
  static void* stream(const Tensor& x) {
    if (!current_stream()) throw std::runtime_error("seblock_cuda: " + cuda_problem());
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(current_stream()(x.get_device_index(), &stream));
    return stream;
  }
  // What the environment asks for, else what was tuned, else the rule.
  static Plan choose(const Problem& problem, Direction direction, bool aligned,
                     const DeviceLimits& limits) {
    const Forced asked = forced_by_environment();
    if (asked.strategy) return plan(problem, direction, aligned, limits, asked);
    try {
      return plan(problem, direction, aligned, limits,
                  tuned_plan(limits, problem, direction, aligned).forced);
    } catch (const std::invalid_argument&) {  // tuned for another batch, or a file is wrong
      return plan(problem, direction, aligned, limits);
    }
  }
  template <typename Params>
  static void execute(Params& params, Direction direction, bool aligned, const Tensor& x,
                      void (*launcher)(const Params&, const Plan&, void*)) {
    const int device = x.get_device_index();
    const torch::stable::accelerator::DeviceGuard guard(device);
    cuda::require_usable(device);
    const Plan chosen = choose(params.problem, direction, aligned, cuda::limits_of(device));
    log_if_asked(direction, chosen);
    const Tensor workspace = CpuBackend::bytes(chosen.workspace.bytes(), x);
    params.workspace = workspace.mutable_data_ptr();
    launcher(params, chosen, stream(x));
  }
  static void run(ForwardParams& params, const Tensor& x) {
    execute(params, Direction::forward, aligned({params.x, params.residual, params.y}), x,
            cuda::forward);
  }
  static void run(BackwardParams& params, const Tensor& x) {
    execute(params, Direction::backward,
            aligned({params.x, params.dy, params.dx, params.dresidual}), x, cuda::backward);
  }
};
#else
std::string cuda_problem() { return "built without CUDA"; }
#endif

// ---- the operators ----

template <typename Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> se_forward(
    const Tensor& input, const Tensor& reduce_weight, const Tensor& expand_weight,
    const OptionalTensor& reduce_bias, const OptionalTensor& expand_bias,
    const OptionalTensor& shortcut, int64_t activation, int64_t gate_function, int64_t tail) {
  Shape shape = check_input(input);
  const Parameters parameters(input, shape, reduce_weight, expand_weight, reduce_bias, expand_bias);
  const Layout layout = layout_of(input);
  const DType dtype = dtype_of(input);
  const DType acc = acc_dtype_of(dtype);
  const Problem problem{shape,
                        layout,
                        dtype,
                        parameters.dtype(),
                        activation_of(activation),
                        gate_of(gate_function),
                        tail_of(tail)};
  require(shortcut.has_value() == (problem.tail != Tail::none),
          "a tail needs a residual, a residual a tail");
  if (shortcut) check_like(input, *shortcut, "residual must be like input");

  const Tensor x = in_layout(layout, input);
  OptionalTensor residual;
  if (shortcut) residual = in_layout(layout, *shortcut);
  Tensor y = empty_like(x, dtype);
  Tensor mask;  // what is not there is None in Python
  if (problem.tail == Tail::add_relu) mask = empty_bytes(mask_bytes(problem), x);
  Tensor pooled = empty_matrix(shape.n, shape.c, acc, x);
  Tensor z1 = empty_matrix(shape.n, shape.r, acc, x);
  Tensor gate = empty_matrix(shape.n, shape.c, acc, x);
  ForwardParams params{problem,
                       parameters.weights(),
                       x.const_data_ptr(),
                       residual ? residual->const_data_ptr() : nullptr,
                       y.mutable_data_ptr(),
                       data_of(mask),
                       pooled.mutable_data_ptr(),
                       z1.mutable_data_ptr(),
                       gate.mutable_data_ptr(),
                       nullptr};
  Backend::run(params, x);
  return {y, pooled, z1, gate, mask};
}

template <typename Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> se_backward(
    const Tensor& output_gradient, const Tensor& input, const Tensor& reduce_weight,
    const Tensor& expand_weight, const Tensor& pooled, const Tensor& z1, const Tensor& gate,
    const OptionalTensor& mask, bool with_reduce_bias, bool with_expand_bias, int64_t activation,
    int64_t gate_function, int64_t tail) {
  Shape shape = check_input(input);
  const Parameters parameters(input, shape, reduce_weight, expand_weight);
  const Layout layout = layout_of(input);
  const DType dtype = dtype_of(input);
  const DType weight_dtype = parameters.dtype();
  const Problem problem{
      shape,        layout, dtype, weight_dtype, activation_of(activation), gate_of(gate_function),
      tail_of(tail)};
  check_like(input, output_gradient, "the gradient of y must be like input");
  check_saved(pooled, shape.c, shape, input);
  check_saved(z1, shape.r, shape, input);
  check_saved(gate, shape.c, shape, input);
  check_mask(mask, problem, input);

  const Tensor x = in_layout(layout, input);
  const Tensor dy = in_layout(layout, output_gradient);
  const bool masked = problem.tail == Tail::add_relu;  // else the residual's gradient is dy itself
  Tensor dx = empty_like(x, dtype);
  Tensor dresidual, dreduce_bias, dexpand_bias;
  if (masked) dresidual = empty_like(x, dtype);
  Tensor dreduce = parameters.empty_like_reduce();
  Tensor dexpand = parameters.empty_like_expand();
  if (with_reduce_bias) dreduce_bias = empty_vector(shape.r, weight_dtype, x);
  if (with_expand_bias) dexpand_bias = empty_vector(shape.c, weight_dtype, x);
  BackwardParams params{problem,
                        parameters.weights(),
                        dy.const_data_ptr(),
                        x.const_data_ptr(),
                        masked ? mask->const_data_ptr() : nullptr,
                        pooled.const_data_ptr(),
                        z1.const_data_ptr(),
                        gate.const_data_ptr(),
                        dx.mutable_data_ptr(),
                        data_of(dresidual),
                        dreduce.mutable_data_ptr(),
                        dexpand.mutable_data_ptr(),
                        data_of(dreduce_bias),
                        data_of(dexpand_bias),
                        nullptr};
  Backend::run(params, x);
  return {dx, dreduce, dexpand, dreduce_bias, dexpand_bias, dresidual};
}

std::string cpu_capability() { return cpu::capability(); }

// ---- tuned plans: csrc/tuned.h ----

DeviceLimits device_of(int64_t capability, int64_t multiprocessors, int64_t l2_bytes) {
  return {static_cast<int>(capability), static_cast<int>(multiprocessors), l2_bytes, 0, 0};
}

// Of the numbers of the enums.
Problem problem_of(int64_t n, int64_t c, int64_t s, int64_t r, int64_t dtype, int64_t weight_dtype,
                   int64_t layout, int64_t tail) {
  return {{n, c, s, r},
          static_cast<Layout>(layout),
          static_cast<DType>(dtype),
          static_cast<DType>(weight_dtype),
          Activation::relu,
          Gate::sigmoid,
          tail_of(tail)};
}

// Group, lag and blocks: 0 leaves them to the rule.
void use_plan_of(int64_t capability, int64_t multiprocessors, int64_t l2_bytes, int64_t n,
                 int64_t c, int64_t s, int64_t r, int64_t dtype, int64_t weight_dtype,
                 int64_t layout, int64_t tail, int64_t direction, bool aligned, int64_t strategy,
                 int64_t group, int64_t lag, int64_t blocks, bool shipped) {
  require(strategy >= 0 && strategy < 3, "unknown strategy");
  use_plan(device_of(capability, multiprocessors, l2_bytes),
           problem_of(n, c, s, r, dtype, weight_dtype, layout, tail),
           static_cast<Direction>(direction), aligned,
           {forced(kStrategyNames[strategy], static_cast<int>(group), static_cast<int>(lag),
                   static_cast<int>(blocks)),
            shipped});
}

// -> strategy (-1: nothing was tuned), group, lag, blocks, shipped
std::tuple<int64_t, int64_t, int64_t, int64_t, bool> tuned_plan_of(
    int64_t capability, int64_t multiprocessors, int64_t l2_bytes, int64_t n, int64_t c, int64_t s,
    int64_t r, int64_t dtype, int64_t weight_dtype, int64_t layout, int64_t tail, int64_t direction,
    bool aligned) {
  const Tuned found = tuned_plan(device_of(capability, multiprocessors, l2_bytes),
                                 problem_of(n, c, s, r, dtype, weight_dtype, layout, tail),
                                 static_cast<Direction>(direction), aligned);
  const Forced& forced = found.forced;
  return {forced.strategy ? static_cast<int64_t>(*forced.strategy) : -1, forced.group.value_or(0),
          forced.lag.value_or(0), forced.blocks.value_or(0), found.shipped};
}

}  // namespace
}  // namespace seblock

STABLE_TORCH_LIBRARY(seblock_cuda, m) {
  m.def("cpu_capability() -> str");
  const std::string tuned =
      "(int capability, int multiprocessors, int l2_bytes, int n, int c, int s, int r, int dtype, "
      "int weight_dtype, int layout, int tail, int direction, bool aligned";
  m.def(("use_plan" + tuned + ", int strategy, int group, int lag, int blocks, bool shipped) -> ()")
            .c_str());
  m.def(("tuned_plan" + tuned + ") -> (int, int, int, int, bool)").c_str());
  m.def("forget_plans() -> ()");
  m.def("cuda_problem() -> str");  // why no device can run the CUDA kernels, if that is so
  // -> y, pooled, z1, gate, mask; mask: None but with a ReLU
  const std::string forward =
      "(Tensor x, Tensor reduce_weight, Tensor expand_weight, Tensor? reduce_bias, "
      "Tensor? expand_bias, Tensor? residual, int activation, int gate, int tail) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)";
  m.def(("se_forward" + forward).c_str());
  m.def(("se_forward_no_grad" + forward).c_str());  // never gets a gradient: see _ops.py
  // -> dx, dW1, dW2, db1, db2, dresidual; None: a bias's that is not asked for, dresidual but with
  // a mask
  m.def(
      "se_backward(Tensor dy, Tensor x, Tensor reduce_weight, Tensor expand_weight, Tensor pooled, "
      "Tensor z1, Tensor gates, Tensor? mask, bool reduce_bias, bool expand_bias, int activation, "
      "int gate, int tail) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(seblock_cuda, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&seblock::cpu_capability));
  m.impl("cuda_problem", TORCH_BOX(&seblock::cuda_problem));
  m.impl("use_plan", TORCH_BOX(&seblock::use_plan_of));
  m.impl("tuned_plan", TORCH_BOX(&seblock::tuned_plan_of));
  m.impl("forget_plans", TORCH_BOX(&seblock::forget_plans));
}

STABLE_TORCH_LIBRARY_IMPL(seblock_cuda, CPU, m) {
  m.impl("se_forward", TORCH_BOX(&seblock::se_forward<seblock::CpuBackend>));
  m.impl("se_forward_no_grad", TORCH_BOX(&seblock::se_forward<seblock::CpuBackend>));
  m.impl("se_backward", TORCH_BOX(&seblock::se_backward<seblock::CpuBackend>));
}

#ifdef SEBLOCK_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(seblock_cuda, CUDA, m) {
  m.impl("se_forward", TORCH_BOX(&seblock::se_forward<seblock::CudaBackend>));
  m.impl("se_forward_no_grad", TORCH_BOX(&seblock::se_forward<seblock::CudaBackend>));
  m.impl("se_backward", TORCH_BOX(&seblock::se_backward<seblock::CudaBackend>));
}
#endif
