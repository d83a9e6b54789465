// What the CPU kernels of a varied recurrence read and write beside what those of a plain layer do (args.h): one
// direction, without projection. Everything is in the accumulation dtype, and dense unless a stride is given.
#pragma once

#include "args.h"

namespace fusedlstm::cpu {

// Parameters, or their gradients; null: none.
template <class T>
struct VariedParameters {
  T *bias_ih, *bias;   // [GH], the first of a cell whose gates are apart
  T* weight_ch;        // [kPeepholes * H]
  T *gain_ih, *gain;   // [GH]
  T *gain_c, *bias_c;  // [H]
};

// What is kept of every step for backward; null: inference, or nothing of this kind.
struct VariedKept {
  void* saved;               // [T, B, saved * H]
  void* before[kMaxStates];  // [T, B, H], the states before the step
  void* entered;             // [T, B, H], h as the product has it, where that is masked
  void *normed_ih, *normed;  // [T, B, GH], normalised sums without their gains
  void* scales;              // [T, B, kVariedScales]
};

// The part of a state's old value that a step keeps.
struct Zoneout {
  RowData part;    // data null: none
  bool is_chosen;  // bools, and not of the accumulation dtype
};

// What both passes are told.
struct VariantArgs {
  bool is_reverse;
  double eps;
  VariedParameters<const void> parameters;
  RowData mask;  // data null: none
  Zoneout zoneout[kMaxStates];
  VariedKept kept;
};

// Of ForwardArgs without what it has for frozen weights, for biases and for backward.
struct VariedForwardArgs : ForwardArgs, VariantArgs {};

// Of BackwardArgs with biases that are sums over the rows of the gates' gradients, as those of plain layers are, and
// without what forward leaves of those.
struct VariedBackwardArgs : BackwardArgs, VariantArgs {
  VariedParameters<void> d_parameters;  // bias_ih, and others without a norm, are among BackwardArgs
};

}  // namespace fusedlstm::cpu
