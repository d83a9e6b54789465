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

  QuantizedCall(const NamedCell& cell, LayerArguments&& arguments, const CheckedQuantized& weights)
      : in(cell, std::move(arguments), weights.sizes),
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

// A layer but for its weights.
template <class Weights>
LayerArguments without_weights(PreparedArguments<Weights>& given) {
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

// What runs a layer with such weights.
template <class Weights>
struct PreparedCall;

template <>
struct PreparedCall<Tensor> : ForwardCall {
  PreparedCall(int cell, FrozenArguments& given)
      : PreparedCall(cell, given, FrozenWeights::of(given.weights, given.place, cell)) {}

 private:
  PreparedCall(int cell, FrozenArguments& given, const FrozenWeights& weights)
      : ForwardCall(kCells[cell], without_weights(given), weights.sizes, weights.kernels, weights.panels) {}
};

template <>
struct PreparedCall<OwnedTensors> : QuantizedCall {
  PreparedCall(int cell, QuantizedArguments& given)
      : QuantizedCall(kCells[cell], without_weights(given), checked(cell, given)) {}

 private:
  static CheckedQuantized checked(int cell, const QuantizedArguments& given) {
    STD_TORCH_CHECK(given.input.dim() > 0, "fusedlstm: expected input with features, got a number");
    return {given.weights, kCells[cell], given.input.size(given.input.dim() - 1)};
  }
};

}  // namespace fusedlstm::cpu
