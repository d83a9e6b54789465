// One layer on a CUDA device, or an ensemble of layers: its arguments, and the two passes over it.
//
// No torch; the library's binding fills the arguments in, and so do the tests. Of an ensemble every view has
// the members as one more dimension in front, of any stride. Sizes as in fusedlstm/reference.py.
#pragma once
#include <limits>

#include "host.h"
#include "launch.h"

namespace fusedlstm::cuda {

// Whether the kernels can take it as an int.
constexpr bool is_int(int64_t size) {
  return size <= std::numeric_limits<int>::max();
}

// Checked by the binding. Views that a layer does not have are null.
struct Layer {
  NamedCell cell;
  Dtype dtype;
  bool allow_tf32;
  bool is_ensemble;
  int64_t members;                                                 // 1 unless it is an ensemble
  int64_t steps, batch, rows, features, hidden, proj, directions;  // of each member; proj 0: no projection
  const int64_t* batch_sizes;                                      // packed: [T] in host memory; else null
  View input;                                                      // [T, B, I] of any strides, or packed [N, I]
  View initial[kMaxStates];                                        // h [D, B, R], others [D, B, H], of any strides
  View weight_ih[kMaxDirections], weight_hh[kMaxDirections];       // [GH, I], [GH, R]: each member contiguous
  View bias_ih[kMaxDirections], bias_hh[kMaxDirections];           // [GH]
  View weight_hr[kMaxDirections];                                  // [P, H]: each member contiguous
  const int64_t* lengths;                                          // [B], contiguous, or null
  const bool* reset;                                               // [T, B], contiguous, or null
  View reset_state[kMaxStates];                                    // as initial

  int64_t recurrent() const { return proj > 0 ? proj : hidden; }
  Dtype acc_dtype() const { return dtype == Dtype::kFloat64 ? Dtype::kFloat64 : Dtype::kFloat32; }
  Sizes each(const Sizes& sizes) const { return is_ensemble ? Sizes(members, sizes) : sizes; }
  // What is member m's of a view of all; of no view, none.
  View of_member(const View& all, int64_t m) const { return is_ensemble && all.dimensions > 0 ? all[m] : all; }
  Layer member(int64_t m) const;
  // Whether one launch of the plan's kernel runs the whole layer, of all members; else it runs STREAM, or one by one.
  bool is_resident(const Plan& plan) const {
    return plan.shape.transport != Transport::kStream && plan.members == members;
  }

  int64_t rows_at(int64_t step) const { return batch_sizes ? batch_sizes[step] : batch; }
  // Dense rows beyond a length are not run: what the kernels do not write there must be zero.
  bool has_idle_rows() const { return lengths != nullptr; }
  // layers: of the stack that it is one of, if these are planned together.
  Problem problem(Pass pass, int layers = 1) const;
};

// Whether the members of an ensemble may run in one launch, if there is a kernel for it.
bool may_run_at_once(const Layer& layer);

// What runs a layer, or the layers of a stack of so many, of which it is one. Without rows nothing does.
Choice choose(Host& host, const Layer& layer, Pass pass, size_t layers = 1);

// Allocated by the caller, contiguous but for the members; saved and carried are null where they are not wanted.
// The rows of steps that are not run are zeros already.
struct ForwardResults {
  View output, last[kMaxStates], saved, carried;
};

// Chooses and runs.
void run_forward(Host& host, const Layer& layer, const ForwardResults& results);
// By a choice of this layer, or of the stack that it is one of. Where the device refuses its kernel, it is what
// replaces it from then on.
void run_forward(Host& host, const Layer& layer, const ForwardResults& results, Choice& choice);

// What the backward pass is given beside the layer: the results of the forward pass that it needs, and the gradients of
// all results; null for zeros. Each member is contiguous, d_output [.., D * R] of any strides but the last.
struct Incoming {
  View output, saved, carried;
  View d_output, d_last[kMaxStates], d_carried;
};

// Allocated by the caller, contiguous, of the sizes of the arguments; null where they are not wanted. Zeros already
// where the layer has no rows.
struct Gradients {
  View input, initial[kMaxStates];
  View weight_ih[kMaxDirections], weight_hh[kMaxDirections], bias_ih[kMaxDirections], bias_hh[kMaxDirections],
      weight_hr[kMaxDirections];
  View reset_state[kMaxStates];
};

void run_backward(Host& host, const Layer& layer, const Incoming& in, const Gradients& grads);
void run_backward(Host& host, const Layer& layer, const Incoming& in, const Gradients& grads, Choice& choice);

}  // namespace fusedlstm::cuda
