// The layer operators on the CPU: tensors to plain argument structs, a plan, and a team that runs the kernels.
#include <algorithm>
#include <utility>

#include "call/checked_steps.h"
#include "call/implement.h"
#include "frozen.h"
#include "layer_call.h"
#include "quantized.h"
#include "run_abreast.h"
#include "run_members.h"

namespace fusedlstm::cpu {
namespace {

// Runs all members of a layer.
LayerResults forward(ForwardCall& call, const LayerKernels& kernels, const char* frozen = nullptr) {
  std::vector<ForwardArgs> members;
  members.reserve(size_t(call.in.t.members));
  for (int64_t m = 0; m < call.in.t.members; ++m) members.push_back(call.args(m, frozen));
  run_members(members, frozen ? Pass::kFrozen : Pass::kForward, kernels.forward_bytes, kernels.forward);
  return std::move(call.results);
}

// The arguments of a layer whose weights come in a form of their own.
template <class Arguments>
LayerArguments without_weights(Arguments& given) {
  LayerArguments layer;
  layer.input = std::move(given.input);
  layer.initial = std::move(given.initial);
  layer.batch_sizes = std::move(given.batch_sizes);
  layer.lengths = std::move(given.lengths);
  layer.reset = std::move(given.reset);
  layer.reset_state = std::move(given.reset_state);
  layer.stack = given.stack;
  layer.place = given.place;
  return layer;
}

template <int kCell>
LayerResults layer(LayerArguments& arguments) {
  ForwardCall call(inputs_of<kCell>(arguments), true);
  return forward(call, call.in.kernels());
}

template <int kCell>
InferenceResults layer_inference(LayerArguments& arguments) {
  ForwardCall call(inputs_of<kCell>(arguments), false);
  LayerResults r = forward(call, call.in.kernels());
  return {std::move(r.output), std::move(r.last)};
}

// The layers of a stack, with as many beside each other as there are threads for, where that is faster.
template <int kCell>
std::vector<LayerResults> forward_layers(std::vector<LayerArguments>& layers, bool is_training) {
  std::vector<LayerResults> all;
  for (size_t l = 0, end = 0; l < layers.size(); l = end) {
    std::vector<ForwardCall> calls;  // which stay where they are: the kernels' arguments point into them
    calls.reserve(layers.size());
    std::vector<ForwardArgs> args;
    do {
      if (end > 0) layers[end].input = calls.empty() ? all.back().output : calls.back().results.output;
      args.push_back(calls.emplace_back(inputs_of<kCell>(layers[end]), is_training).args(0));
    } while (++end < layers.size() &&
             end - l < layers_abreast(args[0].shape, args[0].row_count, Pass::kForward, layers.size()));
    const LayerKernels& kernels = calls[0].in.kernels();
    run_abreast(args, Pass::kForward, kernels.forward_bytes, kernels.forward);
    if (!is_training) all.clear();
    for (ForwardCall& call : calls) all.push_back(std::move(call.results));
  }
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

template <int kCell>
InferenceResults layer_frozen(FrozenArguments& given) {
  const FrozenWeights weights = FrozenWeights::of(given.weights, kCell);
  const NamedCell& cell = kCells[kCell];
  ForwardCall call({cell, CheckedLayer(without_weights(given), cell.sizes, weights.sizes)}, false);
  LayerResults r = forward(call, weights.kernels, weights.panels);
  return {std::move(r.output), std::move(r.last)};
}

template <int kCell>
InferenceResults layer_quantized(QuantizedArguments& given) {
  const NamedCell& cell = kCells[kCell];
  STD_TORCH_CHECK(given.input.dim() > 0, "fusedlstm: expected input with features, got a number");
  const CheckedQuantized weights(given.weights, cell, given.input.size(given.input.dim() - 1));
  const LayerInputs in(cell, CheckedLayer(without_weights(given), cell.sizes, weights.sizes));
  LayerResults r = new_results(in.t, false, false);
  std::vector<QuantizedArgs> layers(1);
  static_cast<ForwardArgs&>(layers[0]) = in.arguments<ForwardArgs>(0);
  set_results(layers[0], in, r, 0);
  std::copy(std::begin(weights.weights), std::end(weights.weights), layers[0].quantized);
  const QuantizedLayerKernels& kernels = active_quantized_kernels(cell.kind, weights.is_reduced);
  run_members(layers, Pass::kQuantized, kernels.forward_bytes, kernels.forward);
  return {std::move(r.output), std::move(r.last)};
}

template <int kCell>
LayerGradients layer_backward(BackwardArguments& arguments) {
  BackwardCall call(inputs_of<kCell>(arguments.layer), arguments);
  std::vector<BackwardArgs> members;
  members.reserve(size_t(call.in.t.members));
  for (int64_t m = 0; m < call.in.t.members; ++m) members.push_back(call.args(m));
  const LayerKernels& kernels = call.in.kernels();
  run_members(members, Pass::kBackward, kernels.backward_bytes, kernels.backward);
  call.finish();
  return std::move(call.gradients);
}

// As forward_layers; the uppermost layer first.
template <int kCell>
std::vector<LayerGradients> layers_backward(std::vector<BackwardArguments>& layers) {
  std::vector<LayerGradients> all;
  for (size_t l = 0, end = 0; l < layers.size(); l = end) {
    std::vector<BackwardCall> calls;
    calls.reserve(layers.size());
    std::vector<BackwardArgs> args;
    do {
      if (end > 0) layers[end].d_output = calls.empty() ? std::move(all.back().input) : calls.back().gradients.input;
      args.push_back(calls.emplace_back(inputs_of<kCell>(layers[end].layer), layers[end]).args(0));
    } while (++end < layers.size() &&
             end - l < layers_abreast(args[0].shape, args[0].row_count, Pass::kBackward, layers.size()));
    const LayerKernels& kernels = calls[0].in.kernels();
    run_abreast(args, Pass::kBackward, kernels.backward_bytes, kernels.backward);
    for (BackwardCall& call : calls) {
      call.finish();
      if (&call != &calls.back()) call.gradients.input = Tensor();  // the next layer has read it
      all.push_back(std::move(call.gradients));
    }
  }
  return all;
}

template <int kCell>
StepsResults steps_second_order(StepsArguments& arguments) {
  const NamedCell& cell = kCells[kCell];
  const CheckedSteps t(std::move(arguments), cell.sizes);
  const StepsResults r = new_results(t);
  const StepsArgs a = args_of(t, r, cell.is_relu);
  struct Call {
    const StepsArgs& args;
    decltype(LayerKernels::second_order) kernel;
  } call{a, active_kernels(cell.kind, dtype_of(t.dtype)).second_order};
  run_team(
      threads_of_steps(t.rows * t.hidden), 0, 0,
      [](void* context, Share share, char*) {
        const Call& c = *static_cast<Call*>(context);
        c.kernel(c.args, share.of(c.args.rows));
      },
      &call);
  return r;
}

// The operators of a cell, and of those after it.
template <int kCell = 0>
void implement_from(torch::stable::detail::StableLibrary& m) {
  if constexpr (kCell < int(std::size(kCells))) {
    implement<kCell, layer<kCell>, layer_inference<kCell>, layer_backward<kCell>, steps_second_order<kCell>,
              layers<kCell>, layers_inference<kCell>, layers_backward<kCell>>(m);
    const std::string cell = kCells[kCell].name;
    m.impl((cell + "_freeze").c_str(), boxed<FreezeResults, FreezeArguments, freeze_layer<kCell>>);
    m.impl((cell + "_layer_frozen").c_str(), boxed<InferenceResults, FrozenArguments, layer_frozen<kCell>>);
    m.impl((cell + "_cell_frozen").c_str(),
           boxed<StepInferenceResults, PreparedStepArguments<Tensor>, one_step_prepared<Tensor, layer_frozen<kCell>>>);
    m.impl((cell + "_layer_quantized").c_str(), boxed<InferenceResults, QuantizedArguments, layer_quantized<kCell>>);
    m.impl((cell + "_cell_quantized").c_str(), boxed<StepInferenceResults, PreparedStepArguments<Tensors>,
                                                     one_step_prepared<Tensors, layer_quantized<kCell>>>);
    m.impl((cell + "_stack_frozen").c_str(),
           boxed<InferenceResults, PreparedStackArguments, run_stack_prepared<Tensor, layer_frozen<kCell>>>);
    m.impl((cell + "_stack_quantized").c_str(),
           boxed<InferenceResults, PreparedStackArguments, run_stack_prepared<Tensors, layer_quantized<kCell>>>);
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
}

}  // namespace fusedlstm::cpu
