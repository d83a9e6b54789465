// What the operators of single steps take and return, and those of second order; as arguments.h has it of layers.
#pragma once

#include <vector>

#include "arguments.h"

namespace fusedlstm {

// One step of one direction, as a cell has it: rows [B, features], and results that are tensors of their own. A layer
// of one step in shorter lists; one_step.h makes the one of the other.
struct StepArguments {
  Tensor input = undefined();
  Tensors states;   // before the step
  Tensors weights;  // weight_ih, weight_hh, and both biases or none
  bool allow_tf32 = false;

  template <class Visitor>
  void visit(Visitor v) {
    v("input", input);
    v("states", states);
    v("weights", weights);
    v("allow_tf32", allow_tf32);
  }
};

// The same with weights of a layer in one direction, in a form of their own; `states` may be empty, for zeros.
template <class Weights>
struct PreparedStepArguments {
  Tensor input = undefined();
  Tensors states;
  Weights weights;

  template <class Visitor>
  void visit(Visitor v) {
    v("input", input);
    v("states", states);
    v("weights", weights);
  }
};

struct StepInferenceResults {
  Tensors last;  // states after the step

  template <class Visitor>
  void visit(Visitor v) {
    v("last", last);
  }
};

struct StepResults {
  Tensors last;
  Tensors kept;  // output, saved and carried of the layer

  template <class Visitor>
  void visit(Visitor v) {
    v("last", last);
    v("kept", kept);
  }
};

struct StepBackwardArguments {
  OptionalTensors d_last;
  StepArguments step;
  Tensors kept;
  std::vector<bool> needs;  // for each of input, states and weights

  template <class Visitor>
  void visit(Visitor v) {
    v("d_last", d_last);
    step.visit(v);
    v("kept", kept);
    v("needs", needs);
  }
};

struct StepGradients {
  Tensors all;  // of input, states and weights

  template <class Visitor>
  void visit(Visitor v) {
    v("gradients", all);
  }
};

// What a double backward finds of one step: of each tensor in question its gradient; None where it is not needed, or
// nothing flows.
struct FoundGradients {
  OptionalTensors all;

  template <class Visitor>
  void visit(Visitor v) {
    v("gradients", all);
  }
};

// Second order of one step: gradients of the sum of <cotangent, gradient> over the gradients
// that StepBackwardArguments asks for.
struct StepSecondOrderArguments {
  OptionalTensors d_last;  // gradients of the states after the step, None for zeros
  StepArguments step;
  Tensors kept;
  OptionalTensors cotangents;  // for each of input, states and weights, None for zeros
  std::vector<bool> needs;     // for each of d_last, input, states and weights
  // Whether what goes by way of the sums that enter the gates is not followed to what they are made of: then the first
  // gradient is that of the sums, in the layout of `saved`, [1, B, sums * H]; otherwise None.
  bool leaves_sums = false;

  template <class Visitor>
  void visit(Visitor v) {
    v("d_last", d_last);
    step.visit(v);
    v("kept", kept);
    v("cotangents", cotangents);
    v("needs", needs);
    v("leaves_sums", leaves_sums);
  }
};

// The gradients of one step for input, states and weights, where `d_sums` arrives at the sums that enter the gates
// beside what arrives there from the states: what StepSecondOrderArguments left.
struct StepSumsBackwardArguments {
  OptionalTensors d_last;
  Tensor d_sums;
  StepArguments step;
  Tensors kept;
  std::vector<bool> needs;

  template <class Visitor>
  void visit(Visitor v) {
    v("d_last", d_last);
    v("d_sums", d_sums);
    step.visit(v);
    v("kept", kept);
    v("needs", needs);
  }
};

// Second order of N steps that do not depend on one another: what is between products
// (fusedlstm/_second_order_step.py). Float32 or float64, [N, H]; [N, GH] of gates' sums, [N, saved * H]. Of lists there
// is one for each state.
struct StepsArguments {
  Tensors before, after;  // states; h of any size where the cell does not use it
  Tensor saved = undefined();
  // Tangents, None for zeros. hidden_sums: of W_hh h, if the cell has gates that are apart. Without `sums` nothing
  // moves.
  OptionalTensor sums, hidden_sums;
  OptionalTensors before_tangent;
  OptionalTensors d_after;  // gradients of the states after the steps, None for zeros
  OptionalTensor d_h_tangent;

  template <class Visitor>
  void visit(Visitor v) {
    v("before", before);
    v("after", after);
    v("saved", saved);
    v("sums", sums);
    v("hidden_sums", hidden_sums);
    v("before_tangent", before_tangent);
    v("d_after", d_after);
    v("d_h_tangent", d_h_tangent);
  }
};

// Of size [0]: tangents where nothing moves, gradients where none arrives, and what the cell has nothing of.
struct StepsResults {
  Tensors after_tangent;
  Tensors d_sums;    // the gradient of the sums and its tangent; then those of the sums of W_hh h where they are apart
  Tensors d_before;  // of the states before, what does not go through products
  Tensors d_before_tangent;

  template <class Visitor>
  void visit(Visitor v) {
    v("after_tangent", after_tangent);
    v("d_sums", d_sums);
    v("d_before", d_before);
    v("d_before_tangent", d_before_tangent);
  }
};

}  // namespace fusedlstm
