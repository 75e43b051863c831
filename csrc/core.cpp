// The pybind11 module `_core`: the plan and the build info. No tensors, no torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "build_info.h"
#include "plan.h"

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

SePlan plan_from(int64_t n, int64_t c, int64_t s, int64_t r, const std::string& dtype,
                 const std::string& layout, const std::string& weight_dtype, bool aligned) {
  if (n < 0 || c < 1 || s < 1 || r < 1)
    throw std::invalid_argument("n must be at least 0, c, s and r at least 1");
  return plan({{n, c, s, r},
               layout_from(layout),
               dtype_from(dtype),
               dtype_from(weight_dtype),
               Activation::relu,
               Gate::sigmoid},
              aligned);
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

  py::class_<Traffic>(m, "Traffic",
                      "Bytes that one direction moves through global memory: see csrc/plan.h.")
      .def_readonly("x", &Traffic::x)
      .def_readonly("weights", &Traffic::weights)
      .def_readonly("small", &Traffic::small)
      .def_property_readonly("read", &Traffic::read)
      .def_readonly("written", &Traffic::written)
      .def_readonly("launches", &Traffic::launches);

  py::class_<SePlan>(m, "SePlan", "How a problem is run on a CUDA device: see csrc/plan.h.")
      .def_property_readonly("strategy", [](const SePlan&) { return "split"; })
      .def_readonly("vec", &SePlan::vec)
      .def_readonly("lanes", &SePlan::lanes)
      .def_readonly("splits", &SePlan::splits)
      .def_readonly("forward_workspace_bytes", &SePlan::forward_workspace_bytes)
      .def_readonly("backward_workspace_bytes", &SePlan::backward_workspace_bytes)
      .def_readonly("forward", &SePlan::forward)
      .def_readonly("backward", &SePlan::backward)
      .def("__repr__", &to_string);

  m.def("plan", &plan_from, py::arg("n"), py::arg("c"), py::arg("s"), py::arg("r"),
        py::arg("dtype"), py::arg("layout"), py::arg("weight_dtype"), py::arg("aligned"),
        "The plan for x [n, c, s] (nchw) or [n, s, c] (nhwc) and r reduced channels.");
  m.def("build_info", &build_info_dict, "What the library was built with.");
}
