// The layer operators on the CPU: tensors to plain argument structs, a plan, and a team that runs the kernels.
#include "operators.h"

#include <algorithm>
#include <utility>

#include "call/implement.h"
#include "prepared_call.h"
#include "run_layers.h"
#include "step_second_order.h"

namespace fusedlstm::cpu {
namespace {

template <int kCell>
LayerResults layer(LayerArguments& arguments) {
  ForwardCall call(kCells[kCell], std::move(arguments), true);
  run_layer(call);
  return std::move(call.results);
}

template <int kCell>
InferenceResults layer_inference(LayerArguments& arguments) {
  ForwardCall call(kCells[kCell], std::move(arguments), false);
  run_layer(call);
  return {std::move(call.results.output), std::move(call.results.last)};
}

template <int kCell>
std::vector<LayerResults> layers(Stack& stack) {
  std::vector<LayerResults> all;
  run_layers<ForwardCall>(
      size_t(stack.layers()),
      [&](std::vector<ForwardCall>& calls, size_t l, const Tensor& made) {
        LayerArguments layer = stack.layer(int64_t(l));
        if (l > 0) layer.input = made;
        calls.emplace_back(kCells[kCell], std::move(layer), true);
      },
      [&](ForwardCall& call) { all.push_back(std::move(call.results)); });
  return all;
}

// In inference the output of the last layer is kept alone, and a layer writes where the one before the last wrote.
template <class Call, class Stack, class Make>
Tensor last_output(Stack& stack, Make make) {
  OptionalTensor output;
  run_layers<Call>(
      size_t(stack.layers()),
      [&](std::vector<Call>& calls, size_t l, const Tensor& made) {
        auto layer = stack.layer(int64_t(l));
        if (l > 0) layer.input = made;
        make(calls, layer);
      },
      [&](Call& call) {
        stack.shared.spare = std::move(output);
        output = std::move(call.results.output);
      });
  return *output;
}

template <int kCell>
Tensor layers_inference(Stack& stack) {
  return last_output<ForwardCall>(stack, [](std::vector<ForwardCall>& calls, LayerArguments& layer) {
    calls.emplace_back(kCells[kCell], std::move(layer), false);
  });
}

template <int kCell>
FreezeResults freeze_layers(FreezeArguments& given) {
  STD_TORCH_CHECK(given.weights.size() >= 2 && given.weights[0].dim() == 2 && given.weights[1].dim() == 2,
                  "fusedlstm: expected weight_ih and weight_hh with 2 dimensions");
  // As those of layers that run no steps of no batch.
  const auto empty = [&](const Tensor& weight_ih) {
    return new_tensor(weight_ih, {0, 0, weight_ih.size(1)}, weight_ih.scalar_type());
  };
  StackArguments weights;
  weights.input = empty(given.weights[0]);
  weights.weights = std::move(given.weights);
  weights.layers = given.layers;
  weights.directions = given.directions;
  Stack stack(weights, kCells[kCell].sizes);
  std::vector<LayerInputs> layers;
  for (LayerArguments& layer : layers_of(stack)) {
    layer.input = empty(layer.weight_ih[0]);
    layers.emplace_back(kCells[kCell], std::move(layer));
  }
  return {freeze(layers, kCell)};
}

template <int kCell, class Weights>
InferenceResults layer_prepared(PreparedArguments<Weights>& given) {
  PreparedCall<Weights> call(kCell, given);
  run_layer(call);
  return {std::move(call.results.output), std::move(call.results.last)};
}

template <int kCell, class Weights>
Tensor layers_prepared(PreparedStack<Weights>& stack) {
  using Call = PreparedCall<Weights>;
  return last_output<Call>(
      stack, [](std::vector<Call>& calls, PreparedArguments<Weights>& layer) { calls.emplace_back(kCell, layer); });
}

template <int kCell>
LayerGradients layer_backward(BackwardArguments& arguments) {
  BackwardCall call(kCells[kCell], arguments);
  run_layer(call);
  call.finish();
  return std::move(call.gradients);
}

// The uppermost layer first.
template <int kCell>
std::vector<LayerGradients> layers_backward(std::vector<BackwardArguments>& layers) {
  std::vector<LayerGradients> all;
  run_layers<BackwardCall>(
      layers.size(),
      [&](std::vector<BackwardCall>& calls, size_t l, const Tensor& made) {
        if (l > 0) layers[l].d_output = made;
        calls.emplace_back(kCells[kCell], layers[l]);
      },
      [&](BackwardCall& call) {
        if (!all.empty()) all.back().input = Tensor();  // this layer has read it
        call.finish();
        all.push_back(std::move(call.gradients));
      });
  return all;
}

template <int kCell>
StepsResults steps_second_order(StepsArguments& arguments) {
  return second_order_of_steps(kCells[kCell], arguments);
}

template <int kCell>
FoundGradients cell_second_order(StepSecondOrderArguments& arguments) {
  return second_order_of_cell(kCells[kCell], arguments);
}

template <int kCell>
FoundGradients cell_sums_backward(StepSumsBackwardArguments& arguments) {
  return gradients_with_sums(kCells[kCell], arguments);
}

// The operators of a cell, and of those after it.
template <int kCell = 0>
void implement_from(torch::stable::detail::StableLibrary& m) {
  if constexpr (kCell < int(std::size(kCells))) {
    implement<kCell, layer<kCell>, layer_inference<kCell>, layer_backward<kCell>, steps_second_order<kCell>,
              layers<kCell>, layers_inference<kCell>, layers_backward<kCell>>(m);
    const std::string cell = kCells[kCell].name;
    m.impl((cell + "_cell_second_order").c_str(),
           boxed<FoundGradients, StepSecondOrderArguments, cell_second_order<kCell>>);
    m.impl((cell + "_cell_sums_backward").c_str(),
           boxed<FoundGradients, StepSumsBackwardArguments, cell_sums_backward<kCell>>);
    m.impl((cell + "_freeze").c_str(), boxed<FreezeResults, FreezeArguments, freeze_layers<kCell>>);
    m.impl((cell + "_layer_frozen").c_str(), boxed<InferenceResults, FrozenArguments, layer_prepared<kCell, Tensor>>);
    m.impl((cell + "_cell_frozen").c_str(), boxed<StepInferenceResults, PreparedStepArguments<Tensor>,
                                                  one_step_prepared<Tensor, layer_prepared<kCell, Tensor>>>);
    m.impl((cell + "_layer_quantized").c_str(),
           boxed<InferenceResults, QuantizedArguments, layer_prepared<kCell, OwnedTensors>>);
    m.impl((cell + "_cell_quantized").c_str(),
           boxed<StepInferenceResults, PreparedStepArguments<OwnedTensors>,
                 one_step_prepared<OwnedTensors, layer_prepared<kCell, OwnedTensors>>>);
    m.impl((cell + "_stack_frozen").c_str(), boxed<StackInferenceResults, PreparedStackArguments<Tensor>,
                                                   run_stack_prepared<Tensor, layers_prepared<kCell, Tensor>>>);
    m.impl((cell + "_stack_quantized").c_str(),
           boxed<StackInferenceResults, PreparedStackArguments<OwnedTensors>,
                 run_stack_prepared<OwnedTensors, layers_prepared<kCell, OwnedTensors>>>);
    implement_from<kCell + 1>(m);
  }
}

}  // namespace

void implement_layers(torch::stable::detail::StableLibrary& m) {
  implement_from(m);
}

void implement_planner(torch::stable::detail::StableLibrary& m) {
  m.impl("_cpu_info", TORCH_BOX(&describe));
  m.impl("_cpu_force", TORCH_BOX(&force));
  m.impl("_cpu_plan", TORCH_BOX(&describe_plan));
}

}  // namespace fusedlstm::cpu
