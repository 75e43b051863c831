// The pybind11 module `_core`: the plan and the build info. No tensors, no torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "build_info.h"
#include "candidates.h"
#include "plan.h"
#include "plan_options.h"

namespace py = pybind11;

namespace seblock {
namespace {

DType dtype_from(const std::string& name) {
  if (name == "float32") return DType::float32;
  if (name == "bfloat16") return DType::bfloat16;
  if (name == "float16") return DType::float16;
  if (name == "float64") return DType::float64;
  throw std::invalid_argument("dtype must be float32, bfloat16, float16 or float64, got " + name);
}

Layout layout_from(const std::string& name) {
  if (name == "nchw") return Layout::nchw;
  if (name == "nhwc") return Layout::nhwc;
  throw std::invalid_argument("layout must be nchw or nhwc, got " + name);
}

Tail tail_from(const std::string& name) {
  if (name == "none") return Tail::none;
  if (name == "add") return Tail::add;
  if (name == "add_relu") return Tail::add_relu;
  throw std::invalid_argument("tail must be none, add or add_relu, got " + name);
}

DeviceLimits known_device(const std::string& name) {
  std::string known;
  for (const KnownDevice& device : kKnownDevices) {
    if (name == device.name) return device.limits;
    known += known.empty() ? device.name : std::string(", ") + device.name;
  }
  throw std::invalid_argument("device must be one of " + known + ", got " + name);
}

Direction direction_from(const std::string& name) {
  if (name == "forward") return Direction::forward;
  if (name == "backward") return Direction::backward;
  throw std::invalid_argument("direction must be forward or backward, got " + name);
}

Problem problem_from(int64_t n, int64_t c, int64_t s, int64_t r, const std::string& dtype,
                     const std::string& layout, const std::string& weight_dtype,
                     const std::string& tail) {
  if (n < 0 || c < 1 || s < 1 || r < 1)
    throw std::invalid_argument("n must be at least 0, c, s and r at least 1");
  return {{n, c, s, r},     layout_from(layout), dtype_from(dtype), dtype_from(weight_dtype),
          Activation::relu, Gate::sigmoid,       tail_from(tail)};
}

Plan plan_from(int64_t n, int64_t c, int64_t s, int64_t r, const std::string& dtype,
               const std::string& layout, const std::string& weight_dtype, bool aligned,
               const std::string& tail, const std::string& direction, const DeviceLimits& limits,
               const std::string& strategy, int group, int lag, int blocks) {
  return plan(problem_from(n, c, s, r, dtype, layout, weight_dtype, tail),
              direction_from(direction), aligned, limits, forced(strategy, group, lag, blocks));
}

std::vector<Plan> candidates_of(int64_t n, int64_t c, int64_t s, int64_t r,
                                const std::string& dtype, const std::string& layout,
                                const std::string& weight_dtype, bool aligned,
                                const std::string& tail, const std::string& direction,
                                const DeviceLimits& limits) {
  return candidates(problem_from(n, c, s, r, dtype, layout, weight_dtype, tail),
                    direction_from(direction), aligned, limits);
}

Tiling tiling_from(int64_t c, int64_t s, const std::string& dtype, const std::string& layout) {
  Problem problem{};
  problem.shape = {1, c, s, 1};
  problem.layout = layout_from(layout);
  problem.dtype = dtype_from(dtype);
  return Tiling(problem);
}

py::dict build_info_dict() {
  const BuildInfo info = build_info();
  py::dict out;
  out["cuda"] = info.cuda;
  out["cuda_version"] = info.cuda_version;
  out["architectures"] = info.architectures;
  out["compiler"] = info.compiler;
  out["flags"] = info.flags;
  out["torch_version"] = info.torch_version;
  return out;
}

}  // namespace
}  // namespace seblock

PYBIND11_MODULE(_core, m) {
  using namespace seblock;
  m.doc() = "The plan of a CUDA run and what the library was built with.";

  py::class_<DeviceLimits>(m, "DeviceLimits",
                           "What the plan needs to know of a GPU: see csrc/device_limits.h.")
      .def(py::init<int, int, int64_t, int64_t, int>(), py::arg("capability"),
           py::arg("multiprocessors"), py::arg("l2_bytes"), py::arg("shared_bytes"),
           py::arg("stream_blocks"))
      .def_readonly("capability", &DeviceLimits::capability)
      .def_readonly("multiprocessors", &DeviceLimits::multiprocessors)
      .def_readonly("l2_bytes", &DeviceLimits::l2_bytes)
      .def_readonly("shared_bytes", &DeviceLimits::shared_bytes)
      .def_readonly("stream_blocks", &DeviceLimits::stream_blocks);
  m.def("known_device", &known_device, py::arg("name"), "The limits of a GPU by its name.");
  m.def("known_devices", [] {
    std::vector<std::string> names;
    for (const KnownDevice& device : kKnownDevices) names.push_back(device.name);
    return names;
  });

  py::class_<Traffic>(m, "Traffic",
                      "Bytes that one direction moves through global memory: see csrc/plan.h.")
      .def_readonly("x", &Traffic::x)
      .def_readonly("again", &Traffic::again)
      .def_readonly("window", &Traffic::window)
      .def_readonly("weights", &Traffic::weights)
      .def_readonly("small", &Traffic::small)
      .def_property_readonly("read", &Traffic::read)
      .def_readonly("shared", &Traffic::shared)
      .def_readonly("written", &Traffic::written)
      .def_readonly("launches", &Traffic::launches);

  py::class_<Plan>(m, "Plan", "How one direction is run on a CUDA device: see csrc/plan.h.")
      .def_property_readonly(
          "strategy",
          [](const Plan& plan) { return kStrategyNames[static_cast<int>(plan.strategy)]; })
      .def_readonly("vectors", &Plan::vectors)
      .def_readonly("group", &Plan::group)
      .def_readonly("lag", &Plan::lag)
      .def_readonly("blocks", &Plan::blocks)
      .def_readonly("overlap", &Plan::overlap)
      .def_readonly("shared_bytes", &Plan::shared_bytes)
      .def_property_readonly("workspace_bytes",
                             [](const Plan& plan) { return plan.workspace.bytes(); })
      .def_readonly("traffic", &Plan::traffic)
      .def("__repr__", &to_string);

  m.def("candidates", &candidates_of, py::arg("n"), py::arg("c"), py::arg("s"), py::arg("r"),
        py::arg("dtype"), py::arg("layout"), py::arg("weight_dtype"), py::arg("aligned"),
        py::arg("tail") = "none", py::arg("direction") = "forward",
        py::arg("limits") = kKnownDevices[0].limits,
        "What a tuner tries for a problem, the rule's own plan first.");
  m.def("plan", &plan_from, py::arg("n"), py::arg("c"), py::arg("s"), py::arg("r"),
        py::arg("dtype"), py::arg("layout"), py::arg("weight_dtype"), py::arg("aligned"),
        py::arg("tail") = "none", py::arg("direction") = "forward",
        py::arg("limits") = kKnownDevices[0].limits, py::arg("strategy") = "", py::arg("group") = 0,
        py::arg("lag") = 0, py::arg("blocks") = 0,
        "The plan for x [n, c, s] (nchw) or [n, s, c] (nhwc) and r reduced channels. What is 0 or "
        "empty is as the rule has it.");

  py::class_<Tiling>(m, "Tiling", "How a sample is divided into tasks: see csrc/tiling.h.")
      .def(py::init(&tiling_from), py::arg("c"), py::arg("s"), py::arg("dtype"), py::arg("layout"))
      .def_property_readonly("by_rows",
                             [](const Tiling& tiling) { return tiling.layout == Layout::nhwc; })
      .def_property_readonly("small_planes", &Tiling::small_planes)
      .def_readonly("lanes", &Tiling::lanes)
      .def_readonly("groups", &Tiling::groups)
      .def_readonly("chunks", &Tiling::chunks)
      .def_readonly("parts", &Tiling::parts)
      .def_readonly("strips", &Tiling::strips)
      .def_readonly("runs", &Tiling::runs);
  py::class_<Deal>(m, "Deal", "How a product is dealt to threads: see csrc/tiling.h.")
      .def(py::init([](bool by_rows, int64_t width, int64_t height) {
             return Deal(by_rows ? Order::rows : Order::columns, width, height);
           }),
           py::arg("by_rows"), py::arg("width"), py::arg("height"))
      .def_property_readonly("lanes", [](const Deal& deal) { return 1 << deal.shift; })
      .def("outputs", &Deal::outputs, py::arg("samples"));

  m.def("build_info", &build_info_dict, "What the library was built with.");
}
