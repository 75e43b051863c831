// The pybind11 module `simt_kernels`: the launchers and kernels of csrc/cuda, run by the SIMT
// harness. Tensors come in as addresses (torch's data_ptr); tests/simt/kernels.py keeps them alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "launch.h"
#include "plan.h"
#include "plan_options.h"
#include "simt.h"
#include "tickets.h"

namespace py = pybind11;
using namespace seblock;

namespace {

template <typename T = void>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

Problem problem_of(int64_t n, int64_t c, int64_t s, int64_t r, int layout, int dtype,
                   int weight_dtype, int activation, int gate, int tail) {
  return {{n, c, s, r},
          static_cast<Layout>(layout),
          static_cast<DType>(dtype),
          static_cast<DType>(weight_dtype),
          static_cast<Activation>(activation),
          static_cast<Gate>(gate),
          static_cast<Tail>(tail)};
}

using Addresses = std::vector<uintptr_t>;

// tensors: reduce, expand, reduce_bias, expand_bias, x, residual, y, mask, pooled, z1, gate,
// workspace
void forward(const Problem& problem, const Plan& plan, const Addresses& t) {
  const ForwardParams params{
      problem,        {pointer(t[0]), pointer(t[1]), pointer(t[2]), pointer(t[3])},
      pointer(t[4]),  pointer(t[5]),
      pointer(t[6]),  pointer(t[7]),
      pointer(t[8]),  pointer(t[9]),
      pointer(t[10]), pointer(t[11])};
  cuda::forward(params, plan, nullptr);
}

// tensors: reduce, expand, dy, x, mask, pooled, z1, gate, dx, dresidual, dreduce, dexpand,
// dreduce_bias, dexpand_bias, workspace
void backward(const Problem& problem, const Plan& plan, const Addresses& t) {
  const BackwardParams params{problem,        {pointer(t[0]), pointer(t[1]), nullptr, nullptr},
                              pointer(t[2]),  pointer(t[3]),
                              pointer(t[4]),  pointer(t[5]),
                              pointer(t[6]),  pointer(t[7]),
                              pointer(t[8]),  pointer(t[9]),
                              pointer(t[10]), pointer(t[11]),
                              pointer(t[12]), pointer(t[13]),
                              pointer(t[14])};
  cuda::backward(params, plan, nullptr);
}

// What ticket after ticket stands for: (scales, sample, task).
std::vector<std::tuple<bool, int, int>> tickets(int64_t samples, int64_t lag, int64_t squeezes,
                                                int64_t scales) {
  const Tickets tickets(samples, lag, squeezes, scales);
  std::vector<std::tuple<bool, int, int>> all;
  for (uint32_t number = 0; number < tickets.total(); ++number) {
    const Ticket ticket = tickets.decode(number);
    all.emplace_back(ticket.scales, ticket.sample, ticket.task);
  }
  return all;
}

using TensorTuple = std::tuple<std::string, uintptr_t, size_t, unsigned, bool>;

void start_recording(const std::vector<TensorTuple>& tuples) {
  std::vector<simt::Tensor> tensors;
  for (const auto& [name, address, bytes, element, output] : tuples) {
    tensors.push_back({name, address, bytes, element, output});
  }
  simt::start_recording(tensors);
}

py::dict traffic_dict(const simt::TensorTraffic& traffic) {
  py::dict out;
  out["first_read"] = traffic.first_read;
  out["read_again"] = traffic.read_again;
  out["read_repeatedly"] = traffic.read_repeatedly;
  out["written"] = traffic.written;
  out["largest_distance"] = traffic.largest_distance;
  out["sectors"] = traffic.sectors;
  out["least_sectors"] = traffic.least_sectors;
  return out;
}

py::list stop_recording() {
  py::list launches;
  for (const simt::LaunchTraffic& launch : simt::stop_recording()) {
    py::list tensors;
    for (const simt::TensorTraffic& traffic : launch.tensors) tensors.append(traffic_dict(traffic));
    py::dict out;
    out["kernel"] = launch.launch.kernel;
    out["blocks"] = launch.launch.blocks;
    out["shared_bytes"] = launch.launch.shared_bytes;
    out["tensors"] = tensors;
    out["shared_requests"] = launch.shared_requests;
    out["bank_conflicts"] = launch.bank_conflicts;
    launches.append(out);
  }
  return launches;
}

}  // namespace

PYBIND11_MODULE(simt_kernels, m) {
  m.doc() = "The CUDA kernels' own source on the CPU.";
  // Local to this module: tests load it more than once, built from different kernels.
  py::class_<Problem>(m, "Problem", py::module_local()).def(py::init(&problem_of));
  py::class_<Plan>(m, "Plan", py::module_local())
      .def_property_readonly("workspace_bytes",
                             [](const Plan& plan) { return plan.workspace.bytes(); });
  m.def(
      "plan",
      [](const Problem& problem, bool forward, bool aligned, const std::string& strategy,
         const std::vector<int64_t>& limits, int group, int lag, int blocks) {
        const DeviceLimits device{static_cast<int>(limits[0]), static_cast<int>(limits[1]),
                                  limits[2], limits[3], static_cast<int>(limits[4])};
        return plan(problem, forward ? Direction::forward : Direction::backward, aligned, device,
                    forced(strategy, group, lag, blocks));
      },
      "As _core.plan.");
  m.def("tickets", &tickets);
  m.def("forward", &forward);
  m.def("backward", &backward);
  m.def("start_recording", &start_recording,
        "Tensors: (name, address, bytes, bytes per element, whether it is an output).");
  m.def("stop_recording", &stop_recording, "A dict per launch: see tests/simt/simt.h.");
  m.def(
      "set_schedule",
      [](unsigned resident, uint64_t seed) {
        simt::schedule.resident = resident;
        simt::schedule.seed = seed;
      },
      py::arg("resident") = 1, py::arg("seed") = 0);
}
