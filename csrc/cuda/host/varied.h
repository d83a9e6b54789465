// A recurrence with variants on a CUDA device, and the two passes over it: one direction of one layer, after its input
// product, step by step.
//
// No torch; the library's binding fills the arguments in, and so do the tests. Names and sizes as in
// fusedlstm/reference_varied.py.
#pragma once
#include "host.h"
#include "varied_launch.h"

namespace fusedlstm::cuda {

// Checked by the binding; contiguous, and all of `dtype`, float32 or float64. What there is none of is null.
struct VariedRecurrence {
  NamedCell cell;
  Dtype dtype;
  bool allow_tf32, is_reverse;
  double eps;
  int64_t steps, batch, hidden;
  View from_input, initial[kMaxStates], weight_hh;
  View bias, mask, zoneout[kMaxStates], weight_ch, gain, gain_c, bias_c;
  const int64_t* lengths;  // [B] on the device
  const bool* reset;       // [T, B]
  View reset_state[kMaxStates];
};

// What is kept of every step for backward; null in inference.
struct VariedKept {
  View saved, before[kMaxStates], normed, scales;
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

// Allocated by the caller, contiguous. from_hidden: null where it equals from_input.
struct VariedGradients {
  View from_input, from_hidden, initial[kMaxStates], reset_state[kMaxStates];
  View bias, weight_ch, gain, gain_c, bias_c;
};

void run_varied_backward(Host& host, const VariedRecurrence& recurrence, const VariedIncoming& in,
                         const VariedGradients& gradients);

}  // namespace fusedlstm::cuda
