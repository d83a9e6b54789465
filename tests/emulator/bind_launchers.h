// Python classes for the launchers' argument structs (csrc/cuda/launch.h), and the launchers themselves.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cuda/fallback.h"
#include "cuda/gemm.h"
#include "cuda/launch.h"
#include "cuda/plan_bindings.h"

namespace emulator {

namespace py = pybind11;

using fusedlstm::gpu::dtype_from_name;

// A field of a struct as a Python attribute: pointers are integers, arrays are tuples.
template <class Struct, class Field>
void bind_field(py::class_<Struct>& cls, const char* name, Field Struct::* member) {
  if constexpr (std::is_array_v<Field>) {
    using Pointer = std::remove_extent_t<Field>;
    using Values = std::array<uintptr_t, std::extent_v<Field>>;
    cls.def_property(
        name,
        [member](const Struct& s) {
          Values values;
          for (size_t i = 0; i < values.size(); ++i) values[i] = reinterpret_cast<uintptr_t>((s.*member)[i]);
          return values;
        },
        [member](Struct& s, const Values& values) {
          for (size_t i = 0; i < values.size(); ++i) (s.*member)[i] = reinterpret_cast<Pointer>(values[i]);
        });
  } else if constexpr (std::is_pointer_v<Field>) {
    cls.def_property(
        name, [member](const Struct& s) { return reinterpret_cast<uintptr_t>(s.*member); },
        [member](Struct& s, uintptr_t value) { s.*member = reinterpret_cast<Field>(value); });
  } else if constexpr (std::is_same_v<Field, fusedlstm::Dtype>) {
    cls.def_property(
        name, [member](const Struct& s) { return fusedlstm::dtype_name(s.*member); },
        [member](Struct& s, const std::string& value) { s.*member = dtype_from_name(value); });
  } else {
    cls.def_readwrite(name, member);
  }
}

template <class Struct, class... Fields>
void bind_struct(py::module_& m, const char* name, std::pair<const char*, Fields Struct::*>... fields) {
  py::class_<Struct> cls(m, name, py::module_local());
  cls.def(py::init([] { return Struct{}; }));
  (bind_field(cls, fields.first, fields.second), ...);
}

inline const fusedlstm::gpu::Device& known_device(const std::string& name) {
  for (const auto& known : fusedlstm::gpu::known_devices())
    if (known.name == name) return known;
  throw std::invalid_argument("no known device is called '" + name + "'");
}

inline void require_success(const char* launcher, cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(launcher) + ": CUDA error " + std::to_string(error));
}

#define FIELD(Struct, name)                                  \
  std::pair<const char*, decltype(Struct::name) Struct::*> { \
    #name, &Struct::name                                     \
  }

inline void bind_launchers(py::module_& m) {
  using namespace fusedlstm::gpu;

  // A class of its own beside the planner's bindings, which hand out dictionaries: launchers take the plan itself.
  py::class_<Plan>(m, "Plan", py::module_local())
      .def_property_readonly("transport", [](const Plan& plan) { return transport_name(plan.shape.transport); })
      .def_property_readonly("rejected", [](const Plan& plan) { return plan.rejected; })
      .def_property_readonly("kernel", [](const Plan& plan) { return kernel_name(plan.arithmetic, plan.shape); })
      .def("__str__", [](const Plan& plan) { return to_string(plan); });
  py::class_<Problem>(m, "Problem", py::module_local())
      .def(py::init([](int64_t T, int64_t B, int64_t H, int64_t proj_size, int directions, int members,
                       const std::string& dtype, bool allow_tf32, bool backward) {
             return Problem{T,
                            B,
                            H,
                            proj_size,
                            directions,
                            members,
                            dtype_from_name(dtype),
                            allow_tf32,
                            backward ? Pass::kBackward : Pass::kForward};
           }),
           py::kw_only(), py::arg("T"), py::arg("B"), py::arg("H"), py::arg("proj_size") = 0, py::arg("directions") = 1,
           py::arg("members") = 1, py::arg("dtype"), py::arg("allow_tf32") = true, py::arg("backward") = false);
  m.def("make_plan", [](const Problem& problem, const std::string& device, const std::string& request) {
    return make_plan(problem, known_device(device), request);
  });
  py::class_<Choice>(m, "Choice", py::module_local()).def_readonly("plan", &Choice::plan);
  py::class_<Fallback>(m, "Fallback", py::module_local())
      .def(py::init([](const std::string& device, int ordinal) {
        return std::make_unique<Fallback>(known_device(device), ordinal);
      }))
      .def("choose", &Fallback::choose)
      .def("replace", [](Fallback& fallback, const Choice& refused, const Problem& problem, int error) {
        const auto replacement = fallback.replace(refused, problem, static_cast<cudaError_t>(error));
        return std::pair(replacement.choice, replacement.warning);
      });
  bind_struct<RowStates>(m, "RowStates", FIELD(RowStates, T), FIELD(RowStates, B), FIELD(RowStates, N),
                         FIELD(RowStates, H), FIELD(RowStates, R), FIELD(RowStates, D), FIELD(RowStates, M),
                         FIELD(RowStates, lengths), FIELD(RowStates, row_offsets), FIELD(RowStates, reset),
                         FIELD(RowStates, reset_h), FIELD(RowStates, reset_c), FIELD(RowStates, h_0),
                         FIELD(RowStates, c_0));
  bind_struct<ForwardArgs>(m, "ForwardArgs", FIELD(ForwardArgs, rows), FIELD(ForwardArgs, dtype),
                           FIELD(ForwardArgs, pre_gates), FIELD(ForwardArgs, pre_gates_stride_t),
                           FIELD(ForwardArgs, pre_gates_stride_b), FIELD(ForwardArgs, bias_ih),
                           FIELD(ForwardArgs, bias_hh), FIELD(ForwardArgs, weight_hh), FIELD(ForwardArgs, exchange),
                           FIELD(ForwardArgs, output), FIELD(ForwardArgs, h_n), FIELD(ForwardArgs, c_n),
                           FIELD(ForwardArgs, gates), FIELD(ForwardArgs, cell_states));
  bind_struct<BackwardArgs>(m, "BackwardArgs", FIELD(BackwardArgs, rows), FIELD(BackwardArgs, dtype),
                            FIELD(BackwardArgs, gates), FIELD(BackwardArgs, cell_states), FIELD(BackwardArgs, d_output),
                            FIELD(BackwardArgs, d_output_stride_t), FIELD(BackwardArgs, d_output_stride_b),
                            FIELD(BackwardArgs, d_h_n), FIELD(BackwardArgs, d_c_n), FIELD(BackwardArgs, d_cell_states),
                            FIELD(BackwardArgs, weight_hh), FIELD(BackwardArgs, exchange), FIELD(BackwardArgs, d_gates),
                            FIELD(BackwardArgs, d_h_0), FIELD(BackwardArgs, d_c_0), FIELD(BackwardArgs, d_reset_h),
                            FIELD(BackwardArgs, d_reset_c));
  bind_struct<ForwardStep>(m, "ForwardStep", FIELD(ForwardStep, d), FIELD(ForwardStep, step), FIELD(ForwardStep, sums),
                           FIELD(ForwardStep, h), FIELD(ForwardStep, c), FIELD(ForwardStep, hidden));
  bind_struct<BackwardStep>(m, "BackwardStep", FIELD(BackwardStep, d), FIELD(BackwardStep, step),
                            FIELD(BackwardStep, sums), FIELD(BackwardStep, d_h), FIELD(BackwardStep, d_c),
                            FIELD(BackwardStep, d_projected), FIELD(BackwardStep, d_hidden));

  // (is_transposed, leading dimension), or None
  m.def("gemm_operand", [](int64_t rows, int64_t columns, int64_t stride_row, int64_t stride_column) {
    const auto operand = gemm_operand(rows, columns, stride_row, stride_column);
    return operand ? py::object(py::make_tuple(operand->is_transposed, operand->leading_dimension)) : py::none();
  });
  m.def("exchange_bytes", &exchange_bytes);
  m.def("weight_pitch", [](const std::string& dtype, int64_t H) { return weight_pitch(dtype_from_name(dtype), H); });
  m.def("launch_forward", [](const Plan& plan, const ForwardArgs& args) {
    require_success("launch_forward", launch_forward(plan, args, nullptr));
  });
  m.def("launch_backward", [](const Plan& plan, const BackwardArgs& args) {
    require_success("launch_backward", launch_backward(plan, args, nullptr));
  });
  m.def("launch_forward_step", [](const ForwardArgs& args, const ForwardStep& state) {
    require_success("launch_forward_step", launch_forward_step(args, state, nullptr));
  });
  m.def("launch_forward_projected", [](const ForwardArgs& args, const ForwardStep& state, uintptr_t projected) {
    require_success("launch_forward_projected",
                    launch_forward_projected(args, state, reinterpret_cast<const void*>(projected), nullptr));
  });
  m.def("launch_backward_step", [](const BackwardArgs& args, const BackwardStep& state) {
    require_success("launch_backward_step", launch_backward_step(args, state, nullptr));
  });
  m.def("launch_backward_projected", [](const BackwardArgs& args, const BackwardStep& state) {
    require_success("launch_backward_projected", launch_backward_projected(args, state, nullptr));
  });
  m.def("launch_store_values", [](const std::vector<int64_t>& values, uintptr_t to) {
    require_success("launch_store_values", launch_store_values(values.data(), static_cast<int64_t>(values.size()),
                                                               reinterpret_cast<int64_t*>(to), nullptr));
  });
  m.def("launch_previous_states",
        [](const RowStates& rows, const std::string& dtype, uintptr_t output, uintptr_t previous) {
          require_success("launch_previous_states",
                          launch_previous_states(rows, dtype_from_name(dtype), reinterpret_cast<const void*>(output),
                                                 reinterpret_cast<void*>(previous), nullptr));
        });
  m.def("launch_hidden_states",
        [](const RowStates& rows, const std::string& dtype, uintptr_t gates, uintptr_t cell_states, uintptr_t hidden) {
          require_success("launch_hidden_states",
                          launch_hidden_states(rows, dtype_from_name(dtype), reinterpret_cast<const void*>(gates),
                                               reinterpret_cast<const void*>(cell_states),
                                               reinterpret_cast<void*>(hidden), nullptr));
        });
}

#undef FIELD

}  // namespace emulator
