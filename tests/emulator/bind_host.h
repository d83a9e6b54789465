// The planner, the host code (csrc/cuda/host/layer.h) on emulated memory, and its argument structs for Python.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "cuda/host/fallback.h"
#include "cuda/host/gemm.h"
#include "cuda/host/kernel_attributes.h"
#include "cuda/host/layer.h"
#include "cuda/host/lost_context.h"
#include "cuda/host/named_problem.h"
#include "cuda/host/second_order.h"
#include "cuda/host/stack.h"
#include "cuda/host/varied.h"
#include "host.h"
#include "streams.h"

namespace emulator {

namespace py = pybind11;

using fusedlstm::cuda::cell_from_name;
using fusedlstm::cuda::dtype_from_name;

// A field of a struct as a Python attribute: pointers are integers, arrays are written as lists.
template <class Struct, class Field>
void bind_field(py::class_<Struct>& cls, const char* name, Field Struct::*member) {
  if constexpr (std::is_array_v<Field>) {
    cls.def_property(name, nullptr, [member](Struct& s, const std::vector<std::remove_extent_t<Field>>& values) {
      if (values.size() > std::extent_v<Field>) throw std::invalid_argument("too many values");
      std::copy(values.begin(), values.end(), s.*member);
    });
  } else if constexpr (std::is_pointer_v<Field>) {
    cls.def_property(
        name, [member](const Struct& s) { return reinterpret_cast<uintptr_t>(s.*member); },
        [member](Struct& s, uintptr_t value) { s.*member = reinterpret_cast<Field>(value); });
  } else if constexpr (std::is_same_v<Field, fusedlstm::Dtype>) {
    cls.def_property(
        name, [member](const Struct& s) { return fusedlstm::dtype_name(s.*member); },
        [member](Struct& s, const std::string& value) { s.*member = dtype_from_name(value); });
  } else if constexpr (std::is_same_v<Field, fusedlstm::NamedCell>) {
    cls.def_property(
        name, [member](const Struct& s) { return (s.*member).name; },
        [member](Struct& s, const std::string& value) { s.*member = cell_from_name(value); });
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

inline const fusedlstm::cuda::Device& known_device(const std::string& name) {
  for (const auto& known : fusedlstm::cuda::known_devices())
    if (known.name == name) return known;
  throw std::invalid_argument("no known device is called '" + name + "'");
}

#define FIELD(Struct, name)                                  \
  std::pair<const char*, decltype(Struct::name) Struct::*> { \
    #name, &Struct::name                                     \
  }

inline void bind_host(py::module_& m) {
  using namespace fusedlstm::cuda;

  py::class_<Plan>(m, "Plan", py::module_local())
      .def_property_readonly("transport", [](const Plan& plan) { return transport_name(plan.shape.transport); })
      .def_property_readonly("rejected", &rejected)
      .def_readonly("abreast", &Plan::abreast)
      .def_readonly("parts", &Plan::parts)
      .def_property_readonly("kernel", [](const Plan& plan) { return kernel_name(plan.arithmetic, plan.shape); })
      .def("__str__", [](const Plan& plan) { return to_string(plan); });
  py::class_<Problem>(m, "Problem", py::module_local())
      .def(py::init([](const std::string& cell, int64_t T, int64_t B, int64_t H, int64_t proj_size, int directions,
                       int members, const std::string& dtype, bool allow_tf32, bool backward, int layers) {
             return named_problem(T, B, H, cell, dtype, proj_size, directions, members, allow_tf32, backward, layers);
           }),
           py::kw_only(), py::arg("cell") = "lstm", py::arg("T"), py::arg("B"), py::arg("H"), py::arg("proj_size") = 0,
           py::arg("directions") = 1, py::arg("members") = 1, py::arg("dtype"), py::arg("allow_tf32") = true,
           py::arg("backward") = false, py::arg("layers") = 1);
  m.def("exchange_bytes", [](const Plan& plan, int T, int B, int H) {
    return exchange_bytes(
        plan, {.T = T, .B = B, .N = T * B, .H = H, .R = H, .D = 1, .M = 1, .begin = 0, .end = T, .row_before = 0});
  });
  m.def("make_plan", [](const Problem& problem, const std::string& device, const std::string& request) {
    return make_plan(problem, known_device(device), request);
  });
  py::class_<PlanMemo>(m, "PlanMemo", py::module_local())
      .def(py::init([](const std::string& device) { return std::make_unique<PlanMemo>(known_device(device)); }))
      .def_property_readonly_static("most", [](const py::object&) { return PlanMemo::kMost; })
      .def("plan", &PlanMemo::plan, py::return_value_policy::copy)
      .def("prefer", &PlanMemo::prefer)
      .def("__len__", &PlanMemo::size);
  py::class_<LastLaunched>(m, "LastLaunched", py::module_local())
      .def_readonly("resident", &LastLaunched::resident)
      .def_readonly("varied", &LastLaunched::varied);
  py::class_<Choice>(m, "Choice", py::module_local()).def_readonly("plan", &Choice::plan);
  py::class_<Fallback>(m, "Fallback", py::module_local())
      .def(py::init([](const std::string& device, int ordinal) {
        return std::make_unique<Fallback>(known_device(device), ordinal);
      }))
      .def("choose", &Fallback::choose)
      .def(
          "choose_each",  // beside other Python threads
          [](Fallback& fallback, const std::vector<Problem>& problems) {
            std::vector<Choice> choices;
            for (const Problem& problem : problems) choices.push_back(fallback.choose(problem, ""));
            return choices;
          },
          py::call_guard<py::gil_scoped_release>())
      .def("prefer", &Fallback::prefer)
      .def_property_readonly("last_launched", &Fallback::last_launched)
      .def("last_plan", [](Fallback& fallback,
                           bool backward) { return fallback.last_plan(backward ? Pass::kBackward : Pass::kForward); })
      .def("replace", [](Fallback& fallback, const Choice& refused, const Problem& problem, int error) {
        const auto replacement = fallback.replace(refused, problem, static_cast<cudaError_t>(error));
        return std::pair(replacement.choice, replacement.warning);
      });

  py::class_<KernelAttributes>(m, "KernelAttributes", py::module_local())
      .def(py::init())
      .def(
          "allow_each",  // beside other Python threads; the errors
          [](KernelAttributes& attributes, const std::vector<uintptr_t>& kernels, size_t smem_bytes, unsigned cluster) {
            std::vector<int> errors;
            for (const uintptr_t kernel : kernels)
              errors.push_back(attributes.allow(reinterpret_cast<const void*>(kernel), smem_bytes, cluster));
            return errors;
          },
          py::call_guard<py::gil_scoped_release>());

  py::class_<View>(m, "View", py::module_local())
      .def(py::init())  // of nothing
      .def(py::init([](uintptr_t data, const std::string& dtype, const std::vector<int64_t>& sizes,
                       const std::vector<int64_t>& strides) {
        View view(reinterpret_cast<void*>(data), nullptr, dtype_from_name(dtype),
                  fusedlstm::Sizes(sizes.data(), static_cast<int64_t>(sizes.size())));
        std::copy(strides.begin(), strides.end(), view.strides);
        return view;
      }));
  bind_struct<Layer>(m, "Layer", FIELD(Layer, cell), FIELD(Layer, dtype), FIELD(Layer, allow_tf32),
                     FIELD(Layer, is_ensemble), FIELD(Layer, members), FIELD(Layer, steps), FIELD(Layer, batch),
                     FIELD(Layer, rows), FIELD(Layer, features), FIELD(Layer, hidden), FIELD(Layer, proj),
                     FIELD(Layer, directions), FIELD(Layer, batch_sizes), FIELD(Layer, input), FIELD(Layer, initial),
                     FIELD(Layer, weight_ih), FIELD(Layer, weight_hh), FIELD(Layer, bias_ih), FIELD(Layer, bias_hh),
                     FIELD(Layer, weight_hr), FIELD(Layer, lengths), FIELD(Layer, reset), FIELD(Layer, reset_state));
  bind_struct<ForwardResults>(m, "ForwardResults", FIELD(ForwardResults, output), FIELD(ForwardResults, last),
                              FIELD(ForwardResults, saved), FIELD(ForwardResults, carried));
  bind_struct<Incoming>(m, "Incoming", FIELD(Incoming, output), FIELD(Incoming, saved), FIELD(Incoming, carried),
                        FIELD(Incoming, d_output), FIELD(Incoming, d_last), FIELD(Incoming, d_carried));
  bind_struct<Gradients>(m, "Gradients", FIELD(Gradients, input), FIELD(Gradients, initial),
                         FIELD(Gradients, weight_ih), FIELD(Gradients, weight_hh), FIELD(Gradients, bias_ih),
                         FIELD(Gradients, bias_hh), FIELD(Gradients, weight_hr), FIELD(Gradients, reset_state));
  py::class_<Zoneout>(m, "Zoneout", py::module_local()).def(py::init([](const View& part, bool is_chosen) {
    return Zoneout{part, is_chosen};
  }));
  bind_struct<VariedRecurrence>(
      m, "VariedRecurrence", FIELD(VariedRecurrence, cell), FIELD(VariedRecurrence, dtype),
      FIELD(VariedRecurrence, allow_tf32), FIELD(VariedRecurrence, is_reverse), FIELD(VariedRecurrence, eps),
      FIELD(VariedRecurrence, steps), FIELD(VariedRecurrence, batch), FIELD(VariedRecurrence, hidden),
      FIELD(VariedRecurrence, input), FIELD(VariedRecurrence, initial), FIELD(VariedRecurrence, weight_ih),
      FIELD(VariedRecurrence, weight_hh), FIELD(VariedRecurrence, bias_ih), FIELD(VariedRecurrence, bias),
      FIELD(VariedRecurrence, mask), FIELD(VariedRecurrence, zoneout), FIELD(VariedRecurrence, weight_ch),
      FIELD(VariedRecurrence, gain_ih), FIELD(VariedRecurrence, gain), FIELD(VariedRecurrence, gain_c),
      FIELD(VariedRecurrence, bias_c), FIELD(VariedRecurrence, lengths), FIELD(VariedRecurrence, reset),
      FIELD(VariedRecurrence, reset_state));
  bind_struct<VariedResults>(m, "VariedResults", FIELD(VariedResults, output), FIELD(VariedResults, last),
                             FIELD(VariedResults, saved), FIELD(VariedResults, before), FIELD(VariedResults, entered),
                             FIELD(VariedResults, normed_ih), FIELD(VariedResults, normed),
                             FIELD(VariedResults, scales));
  bind_struct<VariedIncoming>(m, "VariedIncoming", FIELD(VariedIncoming, d_output), FIELD(VariedIncoming, d_last),
                              FIELD(VariedIncoming, saved), FIELD(VariedIncoming, before),
                              FIELD(VariedIncoming, entered), FIELD(VariedIncoming, normed_ih),
                              FIELD(VariedIncoming, normed), FIELD(VariedIncoming, scales));
  bind_struct<VariedGradients>(m, "VariedGradients", FIELD(VariedGradients, input), FIELD(VariedGradients, weight_ih),
                               FIELD(VariedGradients, weight_hh), FIELD(VariedGradients, initial),
                               FIELD(VariedGradients, reset_state), FIELD(VariedGradients, bias_ih),
                               FIELD(VariedGradients, bias), FIELD(VariedGradients, weight_ch),
                               FIELD(VariedGradients, gain_ih), FIELD(VariedGradients, gain),
                               FIELD(VariedGradients, gain_c), FIELD(VariedGradients, bias_c));
  py::class_<EmulatedHost>(m, "Host", py::module_local())
      .def(py::init<Fallback&, const std::string&>(), py::keep_alive<1, 2>(), py::arg("fallback"), py::arg("request"))
      .def_readonly("warnings", &EmulatedHost::warnings)
      .def_readonly("live", &EmulatedHost::live)
      .def_readonly("products_with_tf32", &EmulatedHost::products_with_tf32)
      .def("run_forward",
           [](EmulatedHost& host, const Layer& layer, const ForwardResults& results) {
             Deferred deferred;
             run_forward(host, layer, results);
             deferred.run();
           })
      .def("run_backward",
           [](EmulatedHost& host, const Layer& layer, const Incoming& in, const Gradients& grads) {
             Deferred deferred;
             run_backward(host, layer, in, grads);
             deferred.run();
           })
      .def("choose_stack",
           [](EmulatedHost& host, const Layer& layer, size_t layers, bool backward) {
             return choose(host, layer, backward ? Pass::kBackward : Pass::kForward, layers);
           })
      .def("run_forward_stack",
           [](EmulatedHost& host, const std::vector<Layer>& layers, const std::vector<ForwardResults>& results,
              Choice choice) {
             Deferred deferred;
             run_forward(host, layers, results, choice);
             deferred.run();
           })
      .def("run_backward_stack",
           [](EmulatedHost& host, const std::vector<Layer>& layers, const std::vector<Incoming>& in,
              const std::vector<Gradients>& grads, Choice choice) {
             Deferred deferred;
             run_backward(host, layers, in, grads, choice);
             deferred.run();
           })
      .def("run_varied_forward", [](EmulatedHost& host, const VariedRecurrence& recurrence,
                                    const VariedResults& results) { run_varied_forward(host, recurrence, results); })
      .def("run_varied_backward",
           [](EmulatedHost& host, const VariedRecurrence& recurrence, const VariedIncoming& in,
              const VariedGradients& gradients) { run_varied_backward(host, recurrence, in, gradients); });

  m.def("lost_context_text", [](const std::string& error, int state, const LastLaunched& last) {
    return lost_context_text(error, static_cast<cudaError_t>(state), last);
  });
  m.def("is_context_lost", [](int error) { return is_context_lost(static_cast<cudaError_t>(error)); });

  // (is_transposed, leading dimension), or None
  m.def("gemm_operand", [](int64_t rows, int64_t columns, int64_t stride_row, int64_t stride_column) {
    const auto operand = gemm_operand(rows, columns, stride_row, stride_column);
    return operand ? py::object(py::make_tuple(operand->is_transposed, operand->leading_dimension)) : py::none();
  });
  m.def("gemm_of", [](const View& out, const View& a, const View& b, bool allow_tf32) -> py::object {
    const auto gemm = gemm_of(out, a, b, allow_tf32);
    if (!gemm) return py::none();
    py::dict told;
    told["transposes"] = py::make_tuple(gemm->transposes_first, gemm->transposes_second);
    told["sizes"] = py::make_tuple(gemm->m, gemm->n, gemm->k);
    told["leading"] = py::make_tuple(gemm->ld_first, gemm->ld_second, gemm->ld_result);
    told["types"] = py::make_tuple(static_cast<int>(gemm->operands), static_cast<int>(gemm->result),
                                   static_cast<int>(gemm->compute));
    return told;
  });
  m.def("launch_store_values", [](const std::vector<int64_t>& values, uintptr_t to) {
    check(launch_store_values(values.data(), static_cast<int64_t>(values.size()), reinterpret_cast<int64_t*>(to),
                              nullptr),
          "launch_store_values");
  });
  // pointers: of each field of StepsArgs that has some, of arrays those of all items; others are null.
  m.def("launch_second_order", [](const std::string& cell_name, const std::string& dtype, int64_t rows, int64_t hidden,
                                  const std::map<std::string, std::vector<uintptr_t>>& pointers) {
    const fusedlstm::NamedCell cell = cell_from_name(cell_name);
    fusedlstm::StepsArgs args{};
    args.rows = rows;
    args.hidden = hidden;
    args.is_relu = cell.is_relu;
    const auto fill = [&](const char* name, auto* field) {
      const auto found = pointers.find(name);
      if (found == pointers.end()) return;
      for (const uintptr_t pointer : found->second)
        *field++ = reinterpret_cast<std::decay_t<decltype(*field)>>(pointer);
    };
    fill("before", args.before);
    fill("after", args.after);
    fill("saved", &args.saved);
    fill("sums", &args.sums);
    fill("hidden_sums", &args.hidden_sums);
    fill("before_tangent", args.before_tangent);
    fill("d_after", args.d_after);
    fill("d_h_tangent", &args.d_h_tangent);
    fill("after_tangent", args.after_tangent);
    fill("d_sums", &args.d_sums);
    fill("d_sums_tangent", &args.d_sums_tangent);
    fill("d_hidden_sums", &args.d_hidden_sums);
    fill("d_hidden_sums_tangent", &args.d_hidden_sums_tangent);
    fill("d_before", args.d_before);
    fill("d_before_tangent", args.d_before_tangent);
    check(launch_second_order(cell.kind, dtype_from_name(dtype), args, nullptr), "launch_second_order");
  });
}

#undef FIELD

}  // namespace emulator
