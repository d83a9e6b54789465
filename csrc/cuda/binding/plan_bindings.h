// The planner for Python: `_core.plan(...)`, `_core.contenders(...)` and `_core.known_devices()`.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "cuda/host/kernel_shapes.h"
#include "cuda/host/named_problem.h"
#include "cuda/host/plan_contenders.h"
#include "cuda/host/plan_varied.h"

namespace fusedlstm::cuda {

inline void bind_plan(pybind11::module_& m) {
  namespace py = pybind11;
  py::class_<Plan>(m, "Plan", py::module_local(), "Which kernel runs a recurrence, and in which shape.")
      .def_property_readonly("cell", [](const Plan& p) { return cell_name(p.shape.cell); })
      .def_property_readonly("transport", [](const Plan& p) { return transport_name(p.shape.transport); })
      .def_property_readonly("arithmetic", [](const Plan& p) { return arithmetic_name(p.arithmetic); })
      .def_property_readonly("units", [](const Plan& p) { return units_per_cta(p.shape, p.arithmetic); })
      .def_property_readonly("batch_rows", [](const Plan& p) { return p.shape.batch_rows(); })
      .def_readonly("ctas_per_tile", &Plan::ctas_per_tile)
      .def_readonly("tiles", &Plan::tiles)
      .def_readonly("members", &Plan::members, "Of an ensemble, that one launch runs: all or 1.")
      .def_readonly("abreast", &Plan::abreast, "Of a stack, layers that run at the same time.")
      .def_readonly("parts", &Plan::parts, "Of the steps, as a stack runs them.")
      .def_readonly("smem_bytes", &Plan::smem_bytes)
      .def_readonly("microseconds", &Plan::microseconds, "Estimated by the model, to choose by; never a result.")
      .def_property_readonly("rejected", &rejected, "Why transports that do not fit were not taken.")
      .def("__str__", [](const Plan& p) { return to_string(p); });

  py::class_<Device>(m, "Device", py::module_local(), "Limits of a GPU that a launch must keep within.")
      .def(py::init<>())
      .def_readwrite("name", &Device::name)
      .def_readwrite("compute_capability", &Device::compute_capability)
      .def_readwrite("code_capability", &Device::code_capability)
      .def_readwrite("sm_count", &Device::sm_count)
      .def_readwrite("smem_bytes", &Device::smem_bytes)
      .def_readwrite("cooperative_launch", &Device::cooperative_launch)
      .def_readwrite("max_clusters_of_2", &Device::max_clusters_of_2)
      .def_readwrite("max_clusters_of_4", &Device::max_clusters_of_4)
      .def_readwrite("max_clusters_of_8", &Device::max_clusters_of_8)
      .def_readwrite("max_clusters_of_16", &Device::max_clusters_of_16)
      .def_readwrite("clock_mhz", &Device::clock_mhz)
      .def_readwrite("memory_gb_per_s", &Device::memory_gb_per_s);

  m.def("known_devices", &known_devices, "Devices that can be planned for without having one.");

  m.def(
      "plan",
      [](const Device& device, int64_t T, int64_t B, int64_t H, const std::string& cell, const std::string& dtype,
         int64_t proj_size, int directions, int members, bool allow_tf32, bool backward, int layers,
         const std::string& request) {
        return make_plan(
            named_problem(T, B, H, cell, dtype, proj_size, directions, members, allow_tf32, backward, layers), device,
            request);
      },
      py::kw_only(), py::arg("device"), py::arg("T"), py::arg("B"), py::arg("H"), py::arg("cell") = "lstm",
      py::arg("dtype") = "float32", py::arg("proj_size") = 0, py::arg("directions") = 1, py::arg("members") = 1,
      py::arg("allow_tf32") = true, py::arg("backward") = false, py::arg("layers") = 1, py::arg("request") = "",
      "The plan of one layer's recurrence, or of a stack of layers; ValueError with the reason if `request` does not "
      "fit.");

  m.def(
      "varied_plan",
      [](const Device& device, int64_t T, int64_t B, int64_t H, const std::string& cell, bool has_norm,
         const std::string& dtype, bool backward, const std::string& request) {
        return to_string(make_varied_plan({named_problem(T, B, H, cell, dtype, 0, 1, 1, true, backward), has_norm},
                                          device, request));
      },
      py::kw_only(), py::arg("device"), py::arg("T"), py::arg("B"), py::arg("H"), py::arg("cell") = "lstm",
      py::arg("has_norm") = true, py::arg("dtype") = "float32", py::arg("backward") = false, py::arg("request") = "",
      "How a direction of a layer with variants runs, in one line, which says why it is not LOCAL where that does not "
      "fit; ValueError with the reason if `request` does not fit.");

  m.def(
      "contenders",
      [](const Device& device, int64_t T, int64_t B, int64_t I, int64_t H, int layers, const std::string& cell,
         const std::string& dtype, int64_t proj_size, int directions, bool allow_tf32, bool packed, bool backward) {
        return contenders_json(named_problem(T, B, H, cell, dtype, proj_size, directions, 1, allow_tf32, backward),
                               device, {I, layers, packed});
      },
      py::kw_only(), py::arg("device"), py::arg("T"), py::arg("B"), py::arg("I"), py::arg("H"), py::arg("layers") = 1,
      py::arg("cell") = "lstm", py::arg("dtype") = "float32", py::arg("proj_size") = 0, py::arg("directions") = 1,
      py::arg("allow_tf32") = true, py::arg("packed") = false, py::arg("backward") = false,
      "What may run a pass of a stack of layers, as JSON: see csrc/cuda/host/plan_contenders.h.");

  m.def(
      "kernel_shapes",
      [](const std::string& cell, const std::string& dtype, bool allow_tf32, bool backward) {
        const Problem problem = named_problem(1, 1, 1, cell, dtype, 0, 1, 1, allow_tf32, backward);
        py::list shapes;
        for (const KernelShape& shape : kKernelShapes)
          if (shape.cell == problem.cell && shape.pass == problem.pass && is_compiled(shape, arithmetic_of(problem)))
            shapes.append(py::make_tuple(transport_name(shape.transport), units_per_cta(shape, arithmetic_of(problem)),
                                         shape.batch_rows(), k_capacity(shape, arithmetic_of(problem))));
        return shapes;
      },
      py::kw_only(), py::arg("cell") = "lstm", py::arg("dtype") = "float32", py::arg("allow_tf32") = true,
      py::arg("backward") = false,
      "(transport, units per CTA, batch rows per CTA, elements of K) of every compiled resident kernel.");
}

}  // namespace fusedlstm::cuda
