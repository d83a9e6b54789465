// What the layer operators take and return: every tensor by its name, once.
//
// `visit` names the members in the order of the schema: from it come the schemas themselves and the conversions to and
// from PyTorch's stack (boxed.h). The Python package has the same names in fusedlstm/_arguments.py, where
// fusedlstm/reference.py says what they mean.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "cells/sizes.h"

namespace fusedlstm {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Tensors = std::vector<Tensor>;
using OptionalTensors = std::vector<OptionalTensor>;

// Tensors that have one owner: a Tensor counts its owners in an allocation of its own, and many small ones at a time
// are more than malloc has at hand.
struct DeleteTensor {
  void operator()(AtenTensorHandle t) const { aoti_torch_delete_tensor_object(t); }
};
using OwnedTensor = std::unique_ptr<AtenTensorOpaque, DeleteTensor>;
using OwnedTensors = std::vector<OwnedTensor>;

// What a tensor is that has not been set yet: the same one for all, since each of one's own is two allocations. Never
// freed: threads may still run while the process exits.
inline const Tensor& undefined() {
  static const Tensor& shared = *new Tensor;
  return shared;
}

// Tensors that the layers of a stack share, so that each is made, checked and handed over once for all: of [layers *
// directions, ...], a layer has `directions` rows. Those of results are made with those of the layer that runs first.
struct StackTensors {
  int64_t layers = 1;
  Tensors initial, last, d_initial;
  Tensor saved = undefined(), carried = undefined();
  // What a layer that has run has read, for one after it to write.
  OptionalTensor spare;
  // What `initial` was found to fit: dtype and device of an input, directions, batch, hidden and recurrent sizes.
  std::optional<std::array<int64_t, 7>> fits;
};

// Of every layer operator. Lists have one tensor for each direction, those of states one for each state of the cell;
// they are empty where the layer has none.
struct LayerArguments {
  Tensor input = undefined();
  Tensors initial, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr;
  OptionalTensor batch_sizes, lengths, reset;
  Tensors reset_state;
  bool allow_tf32 = false;
  // No arguments. Of a layer of a stack: what it shares with the others, and which it is. It has no `initial` of its
  // own, and what backward is given of `d_last`, `saved` and `carried` is that of all.
  StackTensors* stack = nullptr;
  int64_t place = 0;

  // The initial states, of a layer of a stack those of all layers.
  const Tensors& states() const { return stack ? stack->initial : initial; }

  template <class Visitor>
  void visit(Visitor v) {
    v("input", input);
    v("initial", initial);
    v("weight_ih", weight_ih);
    v("weight_hh", weight_hh);
    v("bias_ih", bias_ih);
    v("bias_hh", bias_hh);
    v("weight_hr", weight_hr);
    v("batch_sizes", batch_sizes);
    v("lengths", lengths);
    v("reset", reset);
    v("reset_state", reset_state);
    v("allow_tf32", allow_tf32);
  }
};

struct InferenceResults {
  Tensor output = undefined();
  Tensors last;

  template <class Visitor>
  void visit(Visitor v) {
    v("output", output);
    v("last", last);
  }
};

struct LayerResults {
  Tensor output = undefined();
  Tensors last;
  Tensor saved = undefined(), carried = undefined();

  template <class Visitor>
  void visit(Visitor v) {
    v("output", output);
    v("last", last);
    v("saved", saved);
    v("carried", carried);
  }
};

// The weights of a stack of layers, as StackArguments has them, for a device's kernels to bring into the form that they
// read, once for many calls.
struct FreezeArguments {
  Tensors weights;
  int64_t layers = 1, directions = 1;

  template <class Visitor>
  void visit(Visitor v) {
    v("weights", weights);
    v("layers", layers);
    v("directions", directions);
  }
};

struct FreezeResults {
  Tensor frozen = undefined();  // bytes, [layers, of one], for this process alone

  template <class Visitor>
  void visit(Visitor v) {
    v("frozen", frozen);
  }
};

// A layer's arguments with weights in a form of their own; `initial` may be empty, for zeros. Results are those of
// inference.
template <class Weights>
struct PreparedArguments {
  Tensor input = undefined();
  Tensors initial;
  Weights weights;  // of a layer of a stack: frozen ones are those of all layers
  OptionalTensor batch_sizes, lengths, reset;
  Tensors reset_state;
  StackTensors* stack = nullptr;  // as of LayerArguments
  int64_t place = 0;

  template <class Visitor>
  void visit(Visitor v) {
    v("input", input);
    v("initial", initial);
    v("weights", weights);
    v("batch_sizes", batch_sizes);
    v("lengths", lengths);
    v("reset", reset);
    v("reset_state", reset_state);
  }
};

// Bytes, a row of what <cell>_freeze makes.
using FrozenArguments = PreparedArguments<Tensor>;
// int8. Of each direction weight_ih, weight_hh, scale_ih, scale_hh, sum_ih, sum_hh, then bias_gates, or not, then
// weight_hr, scale_hr and sum_hr, or none: one list, since each one costs a call as much as a short step.
using QuantizedArguments = PreparedArguments<OwnedTensors>;

// Positions in `needs` of the backward operators, which are those of the members of LayerGradients.
enum Need { kInput, kInitial, kWeightIh, kWeightHh, kBiasIh, kBiasHh, kWeightHr, kResetState, kNeeds };

struct BackwardArguments {
  OptionalTensor d_output;
  OptionalTensors d_last;
  OptionalTensor d_carried;
  LayerArguments layer;
  Tensor output = undefined(), saved = undefined(), carried = undefined();
  std::vector<bool> needs;

  template <class Visitor>
  void visit(Visitor v) {
    v("d_output", d_output);
    v("d_last", d_last);
    v("d_carried", d_carried);
    layer.visit(v);
    v("output", output);
    v("saved", saved);
    v("carried", carried);
    v("needs", needs);
  }
};

struct LayerGradients {
  Tensor input = undefined();
  Tensors initial, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, reset_state;

  template <class Visitor>
  void visit(Visitor v) {
    v("d_input", input);
    v("d_initial", initial);
    v("d_weight_ih", weight_ih);
    v("d_weight_hh", weight_hh);
    v("d_bias_ih", bias_ih);
    v("d_bias_hh", bias_hh);
    v("d_weight_hr", weight_hr);
    v("d_reset_state", reset_state);
  }
};

// All layers of a call, without dropout between them; stack.h makes layers of them. Weights are in a row, layer by
// layer and direction by direction, each as torch.nn has them: weight_ih, weight_hh, both biases or none, weight_hr or
// none.
struct StackArguments {
  Tensor input = undefined();
  Tensors states;  // initial ones, [layers * directions, batch, features] each; empty for zeros, if input is not packed
  Tensors weights;
  OptionalTensor batch_sizes;
  int64_t layers = 1, directions = 1;
  bool allow_tf32 = false;

  template <class Visitor>
  void visit(Visitor v) {
    v("input", input);
    v("states", states);
    v("weights", weights);
    v("batch_sizes", batch_sizes);
    v("layers", layers);
    v("directions", directions);
    v("allow_tf32", allow_tf32);
  }
};

// For inference. States, given and returned, are an argument and a result each: a list takes as long as half a short
// step. All that the cell has, or none for zeros.
static_assert(kMaxStates == 2, "h and c are all that operators of stacks have in inference");

struct StackInferenceArguments {
  OptionalTensor h_0, c_0;
  StackArguments stack;  // but for its states

  template <class Visitor>
  void visit(Visitor v) {
    v("input", stack.input);
    v("h_0", h_0);
    v("c_0", c_0);
    v("weights", stack.weights);
    v("batch_sizes", stack.batch_sizes);
    v("layers", stack.layers);
    v("directions", stack.directions);
    v("allow_tf32", stack.allow_tf32);
  }
};

// With weights in a form of their own: frozen ones of all layers, or a list of as many of each layer as
// PreparedArguments has of it.
template <class Weights>
struct PreparedStackArguments {
  Tensor input = undefined();
  OptionalTensor h_0, c_0;
  Weights weights;
  int64_t layers = 1;

  template <class Visitor>
  void visit(Visitor v) {
    v("input", input);
    v("h_0", h_0);
    v("c_0", c_0);
    v("weights", weights);
    v("layers", layers);
  }
};

struct StackInferenceResults {
  Tensor output = undefined(), h_n = undefined();
  OptionalTensor c_n;

  template <class Visitor>
  void visit(Visitor v) {
    v("output", output);
    v("h_n", h_n);
    v("c_n", c_n);
  }
};

struct StackResults {
  Tensor output = undefined();
  Tensors last;
  Tensors kept;  // saved and carried, [layers * directions, ...], then the outputs of all layers but the last one

  template <class Visitor>
  void visit(Visitor v) {
    v("output", output);
    v("last", last);
    v("kept", kept);
  }
};

struct StackBackwardArguments {
  OptionalTensor d_output;
  OptionalTensors d_last;
  StackArguments stack;
  Tensor output = undefined();
  Tensors kept;
  std::vector<bool> needs;  // for each of input, states and weights

  template <class Visitor>
  void visit(Visitor v) {
    v("d_output", d_output);
    v("d_last", d_last);
    stack.visit(v);
    v("output", output);
    v("kept", kept);
    v("needs", needs);
  }
};

struct StackGradients {
  Tensors all;  // of input, states and weights; of size [0] where not needed

  template <class Visitor>
  void visit(Visitor v) {
    v("gradients", all);
  }
};

}  // namespace fusedlstm
