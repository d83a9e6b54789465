// The schemas of the operators: the narrow waist between Python and the kernels of every device.
//
// One call is one layer with all its directions and time steps, so that compiled and exported graphs hold one node
// per layer; or, called from Python alone, a stack of layers, or one step as a cell has it. Arguments and results are
// the structs of call/arguments.h and its kin, for every cell the same; their meanings are written at `layer` in
// fusedlstm/reference.py. Kernels are registered by cpu/registration.cpp and cuda/binding/registration.cpp, fake
// kernels and autograd by fusedlstm/ops.py and _autograd.py.
//
// A second copy of the library in one process (the Python package refuses it) must not end the process: hence a
// fragment (cpu/registration.cpp), and hence the `catch`, since an exception that leaves a static constructor would.
#include "library.h"

#include <cstdio>
#include <exception>

#include "call/boxed.h"
#include "call/recurrence.h"
#include "call/step_arguments.h"
#include "cells/all.h"

namespace fusedlstm {

void define_operators(torch::stable::detail::StableLibrary& m) {
  try {
    for (const NamedCell& named : kCells) {
      const std::string cell = named.name, arguments = listed<LayerArguments>();
      m.def((cell + "_layer" + arguments + " -> " + listed<LayerResults>()).c_str());
      m.def((cell + "_layer_inference" + arguments + " -> " + listed<InferenceResults>()).c_str());
      m.def((cell + "_layer_frozen" + listed<FrozenArguments>() + " -> " + listed<InferenceResults>()).c_str());
      m.def((cell + "_layer_quantized" + listed<QuantizedArguments>() + " -> " + listed<InferenceResults>()).c_str());
      m.def((cell + "_cell_quantized" + listed<PreparedStepArguments<OwnedTensors>>() + " -> " +
             listed<StepInferenceResults>())
                .c_str());
      m.def((cell + "_layer_backward" + listed<BackwardArguments>() + " -> " + listed<LayerGradients>()).c_str());
      const std::string stack = listed<StackArguments>();
      m.def((cell + "_stack" + stack + " -> " + listed<StackResults>()).c_str());
      const std::string inferred = " -> " + listed<StackInferenceResults>();
      m.def((cell + "_stack_inference" + listed<StackInferenceArguments>() + inferred).c_str());
      m.def((cell + "_stack_backward" + listed<StackBackwardArguments>() + " -> " + listed<StackGradients>()).c_str());
      m.def((cell + "_stack_frozen" + listed<PreparedStackArguments<Tensor>>() + inferred).c_str());
      m.def((cell + "_stack_quantized" + listed<PreparedStackArguments<OwnedTensors>>() + inferred).c_str());
      const std::string step = listed<StepArguments>();
      m.def((cell + "_cell" + step + " -> " + listed<StepResults>()).c_str());
      m.def((cell + "_cell_inference" + step + " -> " + listed<StepInferenceResults>()).c_str());
      m.def((cell + "_cell_frozen" + listed<PreparedStepArguments<Tensor>>() + " -> " + listed<StepInferenceResults>())
                .c_str());
      m.def((cell + "_freeze" + listed<FreezeArguments>() + " -> " + listed<FreezeResults>()).c_str());
      m.def((cell + "_cell_backward" + listed<StepBackwardArguments>() + " -> " + listed<StepGradients>()).c_str());
      m.def((cell + "_steps_second_order" + listed<StepsArguments>() + " -> " + listed<StepsResults>()).c_str());
      const std::string found = " -> " + listed<FoundGradients>();
      m.def((cell + "_cell_second_order" + listed<StepSecondOrderArguments>() + found).c_str());
      m.def((cell + "_cell_sums_backward" + listed<StepSumsBackwardArguments>() + found).c_str());
      m.def((cell + "_recurrence" + listed<RecurrenceArguments>() + " -> " + listed<RecurrenceResults>()).c_str());
      m.def((cell + "_recurrence_backward" + listed<RecurrenceBackwardArguments>() + " -> " +
             listed<RecurrenceGradients>())
                .c_str());
    }
    // What the CPU kernels are and why (JSON), the choice of instruction set and plan by name ("" is automatic), and
    // the plan of layers (cpu/isa.h, describe_plan).
    m.def("_cpu_info() -> str");
    m.def("_cpu_force(str isa, str plan) -> ()");
    m.def("_cpu_plan(str kind, int[] sizes, int layers, int threads) -> str");
  } catch (const std::exception& error) {
    std::fprintf(stderr,
                 "fusedlstm: its operators could not be defined; is another copy of this library loaded? (%s)\n",
                 error.what());
  }
}

}  // namespace fusedlstm
