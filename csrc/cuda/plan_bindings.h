// The planner for Python: `_core.plan(...)` and `_core.known_devices()`. Plain values only.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "kernel_shapes.h"
#include "plan.h"

namespace fusedlstm::gpu {

inline Dtype dtype_from_name(const std::string& name) {
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kFloat64, Dtype::kBFloat16, Dtype::kFloat16})
    if (name == dtype_name(dtype)) return dtype;
  throw std::invalid_argument("dtype: expected float32, float64, bfloat16 or float16, got '" + name + "'");
}

inline pybind11::dict to_dict(const Plan& plan) {
  using namespace pybind11::literals;
  return pybind11::dict(
      "transport"_a = transport_name(plan.shape.transport), "arithmetic"_a = arithmetic_name(plan.arithmetic),
      "units"_a = plan.shape.k_splits == 0 ? 0 : plan.shape.units(), "batch_rows"_a = plan.shape.batch_rows(),
      "ctas_per_tile"_a = plan.ctas_per_tile, "tiles"_a = plan.tiles, "smem_bytes"_a = plan.smem_bytes,
      "microseconds"_a = plan.microseconds, "rejected"_a = plan.rejected, "text"_a = to_string(plan));
}

inline void bind_plan(pybind11::module_& m) {
  namespace py = pybind11;
  py::class_<Device>(m, "Device", "Limits of a GPU that a launch must keep within.")
      .def(py::init<>())
      .def_readwrite("name", &Device::name)
      .def_readwrite("compute_capability", &Device::compute_capability)
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
      [](const Device& device, int64_t T, int64_t B, int64_t H, const std::string& dtype, int64_t proj_size,
         int directions, bool allow_tf32, bool backward, const std::string& request) {
        if (T < 1 || B < 1 || H < 1 || directions < 1 || directions > 2 || proj_size < 0)
          throw std::invalid_argument(
              "plan: expected T, B, H >= 1, proj_size >= 0 and 1 or 2 directions, got T=" + std::to_string(T) +
              " B=" + std::to_string(B) + " H=" + std::to_string(H) + " proj_size=" + std::to_string(proj_size) +
              " directions=" + std::to_string(directions));
        const Problem problem{T,          B, H, proj_size, directions, dtype_from_name(dtype),
                              allow_tf32, backward ? Pass::kBackward : Pass::kForward};
        return to_dict(make_plan(problem, device, request));
      },
      py::kw_only(), py::arg("device"), py::arg("T"), py::arg("B"), py::arg("H"), py::arg("dtype") = "float32",
      py::arg("proj_size") = 0, py::arg("directions") = 1, py::arg("allow_tf32") = true, py::arg("backward") = false,
      py::arg("request") = "",
      "The plan of one layer's recurrence, as a dict; ValueError with the reason if `request` does not fit.");

  m.def(
      "kernel_shapes",
      [](const std::string& dtype, bool allow_tf32, bool backward) {
        const Problem problem{1, 1, 1, 0, 1, dtype_from_name(dtype), allow_tf32,
                              backward ? Pass::kBackward : Pass::kForward};
        py::list shapes;
        for (const KernelShape& shape : kKernelShapes)
          if (shape.pass == problem.pass && is_compiled(shape, arithmetic_of(problem)))
            shapes.append(py::make_tuple(transport_name(shape.transport), shape.units(), shape.batch_rows(),
                                         k_capacity(shape, arithmetic_of(problem))));
        return shapes;
      },
      py::kw_only(), py::arg("dtype") = "float32", py::arg("allow_tf32") = true, py::arg("backward") = false,
      "(transport, units per CTA, batch rows per CTA, elements of K) of every compiled resident kernel.");
}

}  // namespace fusedlstm::gpu

using fusedlstm::gpu::bind_plan;
