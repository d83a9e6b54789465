// Calls of layers whose weights come in a form of their own: frozen, or int8.
#pragma once

#include <algorithm>
#include <utility>

#include "call/stack.h"
#include "frozen.h"
#include "layer_call.h"
#include "quantized.h"

namespace fusedlstm::cpu {

// A layer with int8 weights that is to run; must outlive the run, as the weights must.
class QuantizedCall {
 public:
  using Args = QuantizedArgs;
  LayerInputs in;
  LayerResults results;

  QuantizedCall(LayerInputs&& inputs, const CheckedQuantized& weights)
      : in(std::move(inputs)),
        results(new_results(in.t, false, false)),
        weights_(weights),
        kernels_(active_quantized_kernels(in.cell.kind, weights.is_reduced)) {}

  QuantizedArgs args(int64_t member) const {
    QuantizedArgs a{in.arguments<ForwardArgs>(member), {}};
    set_results(a, in, results, member);
    std::copy(std::begin(weights_.weights), std::end(weights_.weights), a.quantized);
    return a;
  }
  PassKernel<QuantizedArgs> kernel() const { return {Pass::kQuantized, kernels_.forward_bytes, kernels_.forward}; }
  const Tensor& made() const { return results.output; }

 private:
  CheckedQuantized weights_;
  const QuantizedLayerKernels& kernels_;
};

// A layer but for its weights, which have these sizes.
template <int kCell, class Weights>
LayerInputs prepared_inputs(PreparedArguments<Weights>& given, const WeightSizes& sizes) {
  LayerArguments layer;
  layer.input = std::move(given.input);
  layer.initial = std::move(given.initial);
  layer.batch_sizes = std::move(given.batch_sizes);
  layer.lengths = std::move(given.lengths);
  layer.reset = std::move(given.reset);
  layer.reset_state = std::move(given.reset_state);
  layer.stack = given.stack;
  layer.place = given.place;
  return {kCells[kCell], CheckedLayer(std::move(layer), kCells[kCell].sizes, sizes)};
}

template <int kCell>
ForwardCall prepared_call(FrozenArguments& given) {
  const FrozenWeights weights = FrozenWeights::of(given.weights, given.place, kCell);
  return {prepared_inputs<kCell>(given, weights.sizes), weights.kernels, weights.panels};
}

template <int kCell>
QuantizedCall prepared_call(QuantizedArguments& given) {
  STD_TORCH_CHECK(given.input.dim() > 0, "fusedlstm: expected input with features, got a number");
  const CheckedQuantized weights(given.weights, kCells[kCell], given.input.size(given.input.dim() - 1));
  return {prepared_inputs<kCell>(given, weights.sizes), weights};
}

}  // namespace fusedlstm::cpu
