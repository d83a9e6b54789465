// The operators of one step, from those of a layer: the same kernels between tensors of a cell's shapes.
//
#pragma once

#include <algorithm>
#include <array>
#include <iterator>
#include <utility>

#include "step_arguments.h"
#include "views.h"

namespace fusedlstm {

// [B, features] as [1, B, features].
inline Tensor as_steps(const Tensor& rows, const char* name) {
  STD_TORCH_CHECK(rows.dim() == 2, "fusedlstm: expected ", name, " of a step with 2 dimensions, got ", rows.dim());
  return viewed(rows, {1, rows.size(0), rows.size(1)}, {0, rows.stride(0), rows.stride(1)});
}
// The opposite; what has no elements stays as it is.
inline Tensor as_rows(const Tensor& steps) {
  if (steps.dim() != 3) return steps;
  STD_TORCH_CHECK(steps.size(0) == 1, "fusedlstm: expected weights of one direction for a step, got ", steps.size(0));
  return viewed(steps, {steps.size(1), steps.size(2)}, {steps.stride(1), steps.stride(2)});
}
inline Tensors as_rows(const Tensors& all) {
  Tensors rows;
  for (const Tensor& steps : all) rows.push_back(as_rows(steps));
  return rows;
}

inline LayerArguments as_layer(StepArguments& step) {
  STD_TORCH_CHECK(step.weights.size() == 2 || step.weights.size() == 4,
                  "fusedlstm: expected 2 or 4 weights of a step, got ", step.weights.size());
  LayerArguments layer;
  layer.input = as_steps(step.input, "input");
  for (const Tensor& state : step.states) layer.initial.push_back(as_steps(state, "states"));
  layer.weight_ih = {step.weights[0]};
  layer.weight_hh = {step.weights[1]};
  if (step.weights.size() == 4) {
    layer.bias_ih = {step.weights[2]};
    layer.bias_hh = {step.weights[3]};
  }
  layer.allow_tf32 = step.allow_tf32;
  return layer;
}

template <LayerResults (*kLayer)(LayerArguments&)>
StepResults one_step(StepArguments& step) {
  LayerArguments layer = as_layer(step);
  LayerResults r = kLayer(layer);
  return {as_rows(r.last), {std::move(r.output), std::move(r.saved), std::move(r.carried)}};
}

template <InferenceResults (*kInference)(LayerArguments&)>
StepInferenceResults one_step_inference(StepArguments& step) {
  LayerArguments layer = as_layer(step);
  return {as_rows(kInference(layer).last)};
}

template <class Weights, InferenceResults (*kLayer)(PreparedArguments<Weights>&)>
StepInferenceResults one_step_prepared(PreparedStepArguments<Weights>& step) {
  PreparedArguments<Weights> layer;
  layer.input = as_steps(step.input, "input");
  for (const Tensor& state : step.states) layer.initial.push_back(as_steps(state, "states"));
  layer.weights = std::move(step.weights);
  return {as_rows(kLayer(layer).last)};
}

template <LayerGradients (*kBackward)(BackwardArguments&)>
StepGradients one_step_backward(StepBackwardArguments& given) {
  STD_TORCH_CHECK(given.kept.size() == 3, "fusedlstm: expected 3 tensors that a step kept, got ", given.kept.size());
  const size_t states = given.step.states.size(), weights = given.step.weights.size();
  STD_TORCH_CHECK(given.needs.size() == 1 + states + weights, "fusedlstm: expected ", 1 + states + weights,
                  " needs, got ", given.needs.size());
  const auto any = [&](size_t first, size_t count) {
    const auto begin = given.needs.begin() + static_cast<std::ptrdiff_t>(first);
    return std::any_of(begin, begin + static_cast<std::ptrdiff_t>(count), [](bool need) { return need; });
  };
  BackwardArguments all;
  for (const OptionalTensor& d : given.d_last)
    all.d_last.push_back(d ? OptionalTensor(as_steps(*d, "d_last")) : std::nullopt);
  all.layer = as_layer(given.step);
  all.output = given.kept[0];
  all.saved = given.kept[1];
  all.carried = given.kept[2];
  all.needs.assign(kNeeds, false);
  all.needs[kInput] = given.needs[0];
  all.needs[kInitial] = any(1, states);
  constexpr Need kOfWeights[] = {kWeightIh, kWeightHh, kBiasIh, kBiasHh};
  for (size_t i = 0; i < weights; ++i) all.needs[kOfWeights[i]] = given.needs[1 + states + i];
  LayerGradients g = kBackward(all);
  Tensors found{as_rows(g.input)};
  for (const Tensor& state : g.initial) found.push_back(as_rows(state));
  for (Tensors* of_kind : {&g.weight_ih, &g.weight_hh, &g.bias_ih, &g.bias_hh})
    std::move(of_kind->begin(), of_kind->end(), std::back_inserter(found));
  return {std::move(found)};
}

}  // namespace fusedlstm
