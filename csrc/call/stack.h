// The operators of a stack of layers, from those of a layer: one call runs all of them, without dropout in between.
//
// From Python, layer by layer, the calls and the lists of their arguments took longer than small layers themselves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <utility>
#include <vector>

#include "cells/all.h"
#include "results.h"

namespace fusedlstm {

// A call's arguments, layer by layer. Must outlive the layers.
class Stack {
 public:
  StackTensors shared;

  Stack(StackArguments& given, CellSizes cell) : given_(given), layers_(given.layers), directions_(given.directions) {
    STD_TORCH_CHECK(layers_ >= 1 && (directions_ == 1 || directions_ == 2),
                    "fusedlstm: expected layers >= 1 and 1 or 2 directions, got ", layers_, " and ", directions_);
    const size_t places = static_cast<size_t>(layers_ * directions_);
    const size_t each = given.weights.size() / places;
    STD_TORCH_CHECK(each * places == given.weights.size() && each >= 2 && each <= 5,
                    "fusedlstm: expected 2 to 5 weights for each of ", layers_, " layers and ", directions_,
                    " directions, got ", given.weights.size());
    kinds_ = {kWeightIh, kWeightHh};
    if (each >= 4) kinds_.insert(kinds_.end(), {kBiasIh, kBiasHh});
    if (each % 2 == 1) kinds_.push_back(kWeightHr);
    for (const Tensor& state : given.states) {
      STD_TORCH_CHECK(state.dim() == 3 && state.size(0) == layers_ * directions_,
                      "fusedlstm: expected states of size [", layers_ * directions_, ", batch, features], got ",
                      sizes_of(state));
      shared.initial.push_back(unit_stride(state));
    }
    if (given.states.empty()) make_zeros(cell);
    shared.layers = layers_;
  }

  int64_t layers() const { return layers_; }
  int32_t device() const { return given_.input.get_device(); }

  // The arguments of a layer, as if it were the first one: the input is the stack's. To be asked for when the layer is
  // to run: lists of many layers at once are memory that malloc cannot hand from one to the next.
  LayerArguments layer(int64_t l) {
    LayerArguments a;
    a.input = given_.input;
    a.stack = &shared;
    a.place = l;
    Tensors* const lists[] = {nullptr, nullptr, &a.weight_ih, &a.weight_hh, &a.bias_ih, &a.bias_hh, &a.weight_hr};
    for (int64_t d = 0; d < directions_; ++d) {
      auto weight = given_.weights.begin() + first_weight(l, d);
      for (const int kind : kinds_) lists[kind]->push_back(*weight++);
    }
    a.batch_sizes = given_.batch_sizes;
    a.allow_tf32 = given_.allow_tf32;
    return a;
  }

  // What the weights of a direction are, in their order.
  const std::vector<int>& kinds() const { return kinds_; }
  // Where those of a layer and a direction begin.
  int64_t first_weight(int64_t l, int64_t d = 0) const {
    return (l * directions_ + d) * static_cast<int64_t>(kinds_.size());
  }

 private:
  const StackArguments& given_;
  const int64_t layers_, directions_;
  std::vector<int> kinds_;

  void make_zeros(CellSizes cell) {
    const Tensor &input = given_.input, &weight_hh = given_.weights[1];
    STD_TORCH_CHECK(!given_.batch_sizes && input.dim() == 3 && weight_hh.dim() == 2,
                    "fusedlstm: expected states with such an input, got none");
    const int64_t batch = input.size(1), hidden = weight_hh.size(0) / cell.gates;
    for (int i = 0; i < cell.states; ++i) {
      const int64_t features = i == 0 ? weight_hh.size(1) : hidden;
      Tensors& states = shared.initial;
      const bool is_same = i > 0 && states[0].size(2) == features;
      states.push_back(is_same ? states[0]
                               : new_zeros(input, {layers_ * directions_, batch, features}, input.scalar_type()));
    }
  }
};

inline std::vector<LayerArguments> layers_of(Stack& stack) {
  std::vector<LayerArguments> layers;
  layers.reserve(static_cast<size_t>(stack.layers()));
  for (int64_t l = 0; l < stack.layers(); ++l) layers.push_back(stack.layer(l));
  return layers;
}

template <int kCell, std::vector<LayerResults> (*kLayers)(Stack&)>
StackResults run_stack(StackArguments& given) {
  Stack stack(given, kCells[kCell].sizes);
  std::vector<LayerResults> all = kLayers(stack);
  StackTensors& shared = stack.shared;
  StackResults r{std::move(all.back().output), std::move(shared.last), {}};
  r.kept.reserve(all.size() + 1);
  r.kept.push_back(std::move(shared.saved));
  r.kept.push_back(std::move(shared.carried));
  for (size_t l = 0; l + 1 < all.size(); ++l) r.kept.push_back(std::move(all[l].output));
  return r;
}

// States as a list of those that there are; and results of inference, with states apart.
inline Tensors listed_states(OptionalTensor& h, OptionalTensor& c) {
  Tensors states;
  states.reserve(kMaxStates);
  for (OptionalTensor* state : {&h, &c})
    if (*state) states.push_back(std::move(**state));
  return states;
}
inline StackInferenceResults with_states_apart(Tensor output, Tensors& last) {
  StackInferenceResults apart{std::move(output), std::move(last[0]), {}};
  if (last.size() > 1) apart.c_n = std::move(last[1]);
  return apart;
}

// kLayers: runs the layers; gives the last one's output.
template <int kCell, Tensor (*kLayers)(Stack&)>
StackInferenceResults run_stack_inference(StackInferenceArguments& given) {
  given.stack.states = listed_states(given.h_0, given.c_0);
  Stack stack(given.stack, kCells[kCell].sizes);
  Tensor output = kLayers(stack);
  return with_states_apart(std::move(output), stack.shared.last);
}

// How many weights a layer of a stack has, of which these are all: a row of frozen ones, or a part of a list.
inline size_t weights_of_each(const Tensor& frozen, int64_t layers) {
  STD_TORCH_CHECK(frozen.dim() == 2 && layers > 0 && frozen.size(0) == layers,
                  "fusedlstm: expected frozen weights of size [", layers, ", bytes], got ", sizes_of(frozen));
  return 1;
}
inline size_t weights_of_each(const OwnedTensors& all, int64_t layers) {
  const size_t each = layers < 1 ? 0 : all.size() / static_cast<size_t>(layers);
  STD_TORCH_CHECK(each > 0 && each * static_cast<size_t>(layers) == all.size(), "fusedlstm: expected weights for ",
                  layers, " layers, got ", all.size());
  return each;
}
// Those of a layer, as its arguments have them; taken out of a list.
inline Tensor weights_of_layer(const Tensor& frozen, size_t, size_t) {
  return frozen;
}
inline OwnedTensors weights_of_layer(OwnedTensors& all, size_t layer, size_t each) {
  if (each == all.size()) return std::move(all);
  const auto first = std::make_move_iterator(all.begin() + static_cast<std::ptrdiff_t>(layer * each));
  return {first, first + static_cast<std::ptrdiff_t>(each)};
}

// The same of a call with weights in a form of their own; theirs are taken out of the call's.
template <class Weights>
class PreparedStack {
 public:
  StackTensors shared;

  explicit PreparedStack(PreparedStackArguments<Weights>& given)
      : given_(given), each_(weights_of_each(given.weights, given.layers)) {
    shared.layers = given.layers;
    shared.initial = listed_states(given.h_0, given.c_0);
    for (const Tensor& state : shared.initial)
      STD_TORCH_CHECK(state.dim() == 3 && state.size(0) % given.layers == 0, "fusedlstm: expected states of ",
                      given.layers, " layers, got size ", sizes_of(state));
  }

  int64_t layers() const { return given_.layers; }

  PreparedArguments<Weights> layer(int64_t l) {
    PreparedArguments<Weights> a;
    a.input = given_.input;
    a.weights = weights_of_layer(given_.weights, static_cast<size_t>(l), each_);
    a.stack = &shared;
    a.place = l;
    return a;
  }

 private:
  PreparedStackArguments<Weights>& given_;
  size_t each_;
};

template <class Weights, Tensor (*kLayers)(PreparedStack<Weights>&)>
StackInferenceResults run_stack_prepared(PreparedStackArguments<Weights>& given) {
  PreparedStack<Weights> stack(given);
  Tensor output = kLayers(stack);
  return with_states_apart(std::move(output), stack.shared.last);
}

template <int kCell, std::vector<LayerGradients> (*kLayers)(std::vector<BackwardArguments>&)>
StackGradients run_stack_backward(StackBackwardArguments& given) {
  Stack stack(given.stack, kCells[kCell].sizes);
  const int64_t L = stack.layers();
  const size_t states = given.stack.states.size(), weights = given.stack.weights.size();
  STD_TORCH_CHECK(given.kept.size() == static_cast<size_t>(L + 1), "fusedlstm: expected ", L + 1,
                  " tensors that a stack kept, got ", given.kept.size());
  STD_TORCH_CHECK(given.needs.size() == 1 + states + weights, "fusedlstm: expected ", 1 + states + weights,
                  " needs, got ", given.needs.size());
  const auto needs = [&](size_t i) { return given.needs[i]; };
  const auto weight = [&](int64_t l) { return 1 + states + static_cast<size_t>(stack.first_weight(l)); };
  const auto any = [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i)
      if (needs(i)) return true;
    return false;
  };
  const bool any_state = any(1, 1 + states);

  const Tensor& input = given.stack.input;
  for (OptionalTensor& d : given.d_last)
    if (d) d = unit_stride(*d);

  // A kind's gradients are asked for where one of its directions' is.
  const auto each_weight = [&](int64_t l, auto visit) {
    size_t place = weight(l);
    for (size_t d = 0; d < static_cast<size_t>(given.stack.directions); ++d)
      for (const int kind : stack.kinds()) visit(kind, d, place++);
  };
  std::vector<BackwardArguments> layers;  // the uppermost first
  layers.reserve(static_cast<size_t>(L));
  bool is_below = true;  // whether something below needs the gradient of the input
  for (int64_t l = L; l-- > 0 && is_below;) {
    BackwardArguments& b = layers.emplace_back();
    if (l == L - 1) b.d_output = std::move(given.d_output);
    b.d_last = given.d_last;
    b.layer = stack.layer(l);
    if (l > 0) b.layer.input = given.kept[static_cast<size_t>(2 + l - 1)];
    b.output = l < L - 1 ? given.kept[static_cast<size_t>(2 + l)] : given.output;
    b.saved = given.kept[0];
    b.carried = given.kept[1];
    b.needs.assign(kNeeds, false);
    is_below = any_state || needs(0) || any(1 + states, weight(l));
    b.needs[kInput] = l > 0 ? is_below : needs(0);
    b.needs[kInitial] = any_state;
    each_weight(l, [&](int kind, size_t, size_t place) {
      if (needs(place)) b.needs[static_cast<size_t>(kind)] = true;
    });
  }
  std::vector<LayerGradients> all = kLayers(layers);
  StackGradients r;
  r.all.assign(1 + states + weights, new_tensor(input, {0}, input.scalar_type()));
  for (size_t i = 0; i < states && any_state; ++i) r.all[1 + i] = std::move(stack.shared.d_initial[i]);
  for (size_t run = 0; run < all.size(); ++run) {
    LayerGradients& g = all[run];
    const int64_t l = L - 1 - static_cast<int64_t>(run);
    if (l == 0) r.all[0] = g.input;
    Tensors* const found[] = {nullptr, nullptr, &g.weight_ih, &g.weight_hh, &g.bias_ih, &g.bias_hh, &g.weight_hr};
    each_weight(l, [&](int kind, size_t d, size_t place) { r.all[place] = std::move((*found[kind])[d]); });
  }
  return r;
}

}  // namespace fusedlstm
