// A recurrence with variants on a CUDA device, and the two passes over it: one direction of one layer, step by step.
//
// No torch; the library's binding fills the arguments in, and so do the tests. Names and sizes as in
// fusedlstm/reference_varied.py.
#pragma once
#include "host.h"
#include "varied_launch.h"

namespace fusedlstm::cuda {

// The part of a state's old value that a step keeps, [1 or T, 1 or B, H].
struct Zoneout {
  View part;       // of no data: none
  bool is_chosen;  // bools, of which the view's dtype says nothing
};

// Checked by the binding; contiguous but for the input, and all of `dtype`, float32 or float64. What there is none of
// is null.
struct VariedRecurrence {
  NamedCell cell;
  Dtype dtype;
  bool allow_tf32, is_reverse;
  double eps;
  int64_t steps, batch, hidden;
  View input, initial[kMaxStates], weight_ih, weight_hh;
  Zoneout zoneout[kMaxStates];
  View bias_ih, bias, mask, weight_ch, gain_ih, gain, gain_c, bias_c;
  const int64_t* lengths;  // [B] on the device
  const bool* reset;       // [T, B]
  View reset_state[kMaxStates];
};

// What is kept of every step for backward; null in inference.
struct VariedKept {
  View saved, before[kMaxStates], entered, normed_ih, normed, scales;
};

// Allocated by the caller, contiguous. Rows that are not run become zeros.
struct VariedResults : VariedKept {
  View output, last[kMaxStates];
};

// Throws std::runtime_error where a size is too large for the kernels.
void run_varied_forward(Host& host, const VariedRecurrence& recurrence, const VariedResults& results);

// The gradients of all results, null for zeros; and what the forward pass kept.
struct VariedIncoming : VariedKept {
  View d_output, d_last[kMaxStates];
};

// Allocated by the caller, contiguous. Null: not needed, or there is none.
struct VariedGradients {
  View input, weight_ih, weight_hh, initial[kMaxStates], reset_state[kMaxStates];
  View bias_ih, bias, weight_ch, gain_ih, gain, gain_c, bias_c;
};

void run_varied_backward(Host& host, const VariedRecurrence& recurrence, const VariedIncoming& in,
                         const VariedGradients& gradients);

}  // namespace fusedlstm::cuda
