// What the CPU kernels of a varied recurrence read and write, as plain structs: one direction of one layer, after its
// input product. Letters as in args.h; everything is in the accumulation dtype, and dense unless a stride is given.
#pragma once

#include "args.h"

namespace fusedlstm::cpu {

// Parameters, or their gradients; null: none.
template <class T>
struct VariedParameters {
  T* bias;             // [GH]
  T* weight_ch;        // [kPeepholes * H]
  T* gain;             // [GH]
  T *gain_c, *bias_c;  // [H]
};

struct VariedArgs {
  Shape shape;  // one direction, no projection; `input` has no meaning
  Rows rows;    // not packed
  int64_t row_count;
  bool is_relu, is_reverse;
  double eps;
  const void* from_input;  // [T, B, GH]
  const void* weight_hh;   // forward: [H, GH], which is its transpose; backward: [GH, H]
  VariedParameters<const void> parameters;
  State initial[kMaxStates], reset_state[kMaxStates];  // of direction 0
  RowData mask, zoneout[kMaxStates];                   // data null: none
};

// What is kept of every step for backward; null: inference, or nothing of this kind.
struct VariedKept {
  void* saved;               // [T, B, saved * H]
  void* before[kMaxStates];  // [T, B, H], the states before the step
  void* normed;              // [T, B, GH], normalised sums without their gain
  void* scales;              // [T, B, kVariedScales]
};

struct VariedForwardArgs : VariedArgs {
  void* output;            // [T, B, H]
  void* last[kMaxStates];  // [B, H]
  VariedKept kept;
};

struct VariedBackwardArgs : VariedArgs {
  RowData d_output;  // data null: zeros
  State d_last[kMaxStates];
  VariedKept kept;
  // Results; d_from_hidden null where it equals the other.
  void *d_from_input, *d_from_hidden;                       // [T, B, GH]
  void *d_initial[kMaxStates], *d_reset_state[kMaxStates];  // [B, H]; null: not needed
  VariedParameters<void> d_parameters;
};

}  // namespace fusedlstm::cpu
