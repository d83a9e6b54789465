// The layer operators on the CPU: tensors to plain argument structs, a plan, and a team that runs the kernels.
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
  ForwardCall call(inputs_of<kCell>(arguments), true);
  run_layer(call);
  return std::move(call.results);
}

template <int kCell>
InferenceResults layer_inference(LayerArguments& arguments) {
  ForwardCall call(inputs_of<kCell>(arguments), false);
  run_layer(call);
  return {std::move(call.results.output), std::move(call.results.last)};
}

// In inference, the results of the last layer alone.
template <int kCell>
std::vector<LayerResults> forward_layers(std::vector<LayerArguments>& layers, bool is_training) {
  std::vector<LayerResults> all;
  run_layers<ForwardCall>(
      layers.size(),
      [&](size_t l, const Tensor& made) {
        if (l > 0) layers[l].input = made;
        return ForwardCall(inputs_of<kCell>(layers[l]), is_training);
      },
      [&](ForwardCall& call) {
        if (!is_training) all.clear();
        all.push_back(std::move(call.results));
      });
  return all;
}

template <int kCell>
std::vector<LayerResults> layers(std::vector<LayerArguments>& arguments) {
  return forward_layers<kCell>(arguments, true);
}

template <int kCell>
InferenceResults layers_inference(std::vector<LayerArguments>& arguments) {
  LayerResults r = std::move(forward_layers<kCell>(arguments, false).back());
  return {std::move(r.output), std::move(r.last)};
}

template <int kCell>
FreezeResults freeze_layer(FreezeArguments& weights) {
  // As those of a layer that runs no steps of no batch.
  STD_TORCH_CHECK(!weights.weight_ih.empty() && !weights.weight_hh.empty() && weights.weight_ih[0].dim() == 2 &&
                      weights.weight_hh[0].dim() == 2,
                  "fusedlstm: expected weight_ih and weight_hh with 2 dimensions");
  const CellSizes cell = kCells[kCell].sizes;
  const Tensor &ih = weights.weight_ih[0], &hh = weights.weight_hh[0];
  const auto empty = [&](const Sizes& sizes) { return new_tensor(ih, sizes, ih.scalar_type()); };
  LayerArguments layer;
  layer.input = empty({0, 0, ih.size(1)});
  for (int i = 0; i < cell.states; ++i)
    layer.initial.push_back(
        empty({int64_t(weights.weight_ih.size()), 0, i == 0 ? hh.size(1) : hh.size(0) / cell.gates}));
  layer.weight_ih = std::move(weights.weight_ih);
  layer.weight_hh = std::move(weights.weight_hh);
  layer.bias_ih = std::move(weights.bias_ih);
  layer.bias_hh = std::move(weights.bias_hh);
  layer.weight_hr = std::move(weights.weight_hr);
  const LayerInputs in = inputs_of<kCell>(layer);
  return {freeze(in.t, in.arguments<LayerArgs>(0), kCell, dtype_of(in.t.dtype))};
}

template <int kCell, class Weights>
InferenceResults layer_prepared(PreparedArguments<Weights>& given) {
  auto call = prepared_call<kCell>(given);
  run_layer(call);
  return {std::move(call.results.output), std::move(call.results.last)};
}

template <int kCell, class Weights>
InferenceResults layers_prepared(std::vector<PreparedArguments<Weights>>& layers) {
  using Call = decltype(prepared_call<kCell>(layers[0]));
  InferenceResults r;
  run_layers<Call>(
      layers.size(),
      [&](size_t l, const Tensor& made) {
        if (l > 0) layers[l].input = made;
        return prepared_call<kCell>(layers[l]);
      },
      [&](Call& call) { r = {std::move(call.results.output), std::move(call.results.last)}; });
  return r;
}

template <int kCell>
LayerGradients layer_backward(BackwardArguments& arguments) {
  BackwardCall call(inputs_of<kCell>(arguments.layer), arguments);
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
      [&](size_t l, const Tensor& made) {
        if (l > 0) layers[l].d_output = made;
        return BackwardCall(inputs_of<kCell>(layers[l].layer), layers[l]);
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
    m.impl((cell + "_freeze").c_str(), boxed<FreezeResults, FreezeArguments, freeze_layer<kCell>>);
    m.impl((cell + "_layer_frozen").c_str(), boxed<InferenceResults, FrozenArguments, layer_prepared<kCell, Tensor>>);
    m.impl((cell + "_cell_frozen").c_str(), boxed<StepInferenceResults, PreparedStepArguments<Tensor>,
                                                  one_step_prepared<Tensor, layer_prepared<kCell, Tensor>>>);
    m.impl((cell + "_layer_quantized").c_str(),
           boxed<InferenceResults, QuantizedArguments, layer_prepared<kCell, Tensors>>);
    m.impl((cell + "_cell_quantized").c_str(), boxed<StepInferenceResults, PreparedStepArguments<Tensors>,
                                                     one_step_prepared<Tensors, layer_prepared<kCell, Tensors>>>);
    m.impl((cell + "_stack_frozen").c_str(),
           boxed<InferenceResults, PreparedStackArguments, run_stack_prepared<Tensor, layers_prepared<kCell, Tensor>>>);
    m.impl(
        (cell + "_stack_quantized").c_str(),
        boxed<InferenceResults, PreparedStackArguments, run_stack_prepared<Tensors, layers_prepared<kCell, Tensors>>>);
    implement_from<kCell + 1>(m);
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(FUSEDLSTM_NAMESPACE, CPU, m) {
  implement_from(m);
}

STABLE_TORCH_LIBRARY_IMPL(FUSEDLSTM_NAMESPACE, CompositeExplicitAutograd, m) {
  m.impl("_cpu_info", TORCH_BOX(&describe));
  m.impl("_cpu_force", TORCH_BOX(&force));
  m.impl("_cpu_plan", TORCH_BOX(&describe_plan));
}

}  // namespace fusedlstm::cpu
