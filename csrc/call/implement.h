// The operators that every device has, from its kernels for a layer and for the layers of a stack.
#pragma once

#include <string>
#include <vector>

#include "boxed.h"
#include "one_step.h"
#include "recurrence.h"
#include "stack.h"

namespace fusedlstm {

// Registers a device's kernels for the operators of a cell: of layers, of stacks of them, and of steps.
template <int kCell, LayerResults (*kLayer)(LayerArguments&), InferenceResults (*kInference)(LayerArguments&),
          LayerGradients (*kBackward)(BackwardArguments&), StepsResults (*kSecondOrder)(StepsArguments&),
          std::vector<LayerResults> (*kLayers)(Stack&), Tensor (*kLayersInference)(Stack&),
          std::vector<LayerGradients> (*kLayersBackward)(std::vector<BackwardArguments>&)>
void implement(torch::stable::detail::StableLibrary& m) {
  const std::string cell = kCells[kCell].name;
  m.impl((cell + "_layer").c_str(), boxed<LayerResults, LayerArguments, kLayer>);
  m.impl((cell + "_layer_inference").c_str(), boxed<InferenceResults, LayerArguments, kInference>);
  m.impl((cell + "_layer_backward").c_str(), boxed<LayerGradients, BackwardArguments, kBackward>);
  m.impl((cell + "_stack").c_str(), boxed<StackResults, StackArguments, run_stack<kCell, kLayers>>);
  m.impl((cell + "_stack_inference").c_str(),
         boxed<StackInferenceResults, StackInferenceArguments, run_stack_inference<kCell, kLayersInference>>);
  m.impl((cell + "_stack_backward").c_str(),
         boxed<StackGradients, StackBackwardArguments, run_stack_backward<kCell, kLayersBackward>>);
  m.impl((cell + "_cell").c_str(), boxed<StepResults, StepArguments, one_step<kLayer>>);
  m.impl((cell + "_cell_inference").c_str(),
         boxed<StepInferenceResults, StepArguments, one_step_inference<kInference>>);
  m.impl((cell + "_cell_backward").c_str(), boxed<StepGradients, StepBackwardArguments, one_step_backward<kBackward>>);
  m.impl((cell + "_steps_second_order").c_str(), boxed<StepsResults, StepsArguments, kSecondOrder>);
}

// The same for those of its recurrence with variants.
template <int kCell, RecurrenceResults (*kForward)(RecurrenceArguments&),
          RecurrenceGradients (*kBackward)(RecurrenceBackwardArguments&)>
void implement_recurrence(torch::stable::detail::StableLibrary& m) {
  const std::string cell = kCells[kCell].name;
  m.impl((cell + "_recurrence").c_str(), boxed<RecurrenceResults, RecurrenceArguments, kForward>);
  m.impl((cell + "_recurrence_backward").c_str(), boxed<RecurrenceGradients, RecurrenceBackwardArguments, kBackward>);
}

}  // namespace fusedlstm
