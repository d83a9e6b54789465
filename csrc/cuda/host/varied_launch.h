// What the host hands to the kernels of a recurrence with variants (cells/varied.h): one direction of one layer,
// between its products, in float32 or float64 (acc_t).
//
// No torch. A step is a product of all batch rows with weight_hh, which is the caller's as the input's is, and one
// kernel in which a block has a batch row as a whole: norms are of all its units. Letters as in launch.h; everything is
// dense and acc_t.
#pragma once
#include <cuda_runtime_api.h>

#include "cells/varied.h"
#include "launch.h"

namespace fusedlstm::cuda {

// What a state or its operand is multiplied by: element u of row (t, b) at data + t * step + b * batch + u.
struct Factors {
  const void* data;  // null: there are none
  int64_t step, batch;
  bool are_bools;  // and not acc_t
};

struct VariedArgs {
  RowStates rows;  // dense; R = H, D = M = 1
  Dtype dtype;
  VariedKind kind;
  bool is_relu;  // of the RNN: its activation
  int direction;
  double eps;
  const void* weight_hh;  // [GH, H]; of launch_varied_resident alone
  Factors mask, zoneout[kMaxStates];
  // Null: none.
  const void *bias_ih, *bias;   // [GH]
  const void* weight_ch;        // [kPeepholes * H]
  const void *gain_ih, *gain;   // [GH]
  const void *gain_c, *bias_c;  // [H]
  void* saved;                  // [N, saved * H]; null: inference
  void* before[kMaxStates];     // [N, H], the states before the step
  void* entered;                // [N, H], h as it enters the product; null without a mask
  void *normed_ih, *normed;     // [N, GH], normalised sums without their gains; null without these
  void* scales;                 // [N, kVariedScales]; null without norms
};

struct VariedForwardArgs : VariedArgs {
  const void* from_input;  // [N, GH]
  void* sums;              // [B, GH], what the product came to; the kernel has it for its own use then
  void* operand;           // [B, H], masked h, for the next product; null without a mask: then it takes last[0]
  void* output;            // [N, H]
  void* last[kMaxStates];  // [B, H], the states: after every launch those after its step
};

// Gradients of the parameters, as one batch row adds them up over its steps: [B, size of the parameter], zero before
// the first of single steps; null: none.
struct VariedSums {
  void *bias, *weight_ch, *gain_ih, *gain, *gain_c, *bias_c;
};

struct VariedBackwardArgs : VariedArgs {
  const void* d_output;            // [N, H]; null for zeros
  const void* d_last[kMaxStates];  // [B, H]; null for zeros
  const void* product;             // [B, H]: the gradients of a step's sums times weight_hh; of single steps alone
  void* d_from_input;              // [N, GH]
  void* d_from_hidden;             // [N, GH]; null where it equals the other
  // [B, H]: after every launch the gradients of the states before its step, but for what its product brings; at the end
  // of the initial ones.
  void* d_initial[kMaxStates];
  void* d_reset_state[kMaxStates];  // [B, H], zero before the first step; null: not needed
  VariedSums d_parameters;
};

// Step `step` in order of running, whose product is in args.sums; -1: fetches the initial states. Leaves the states and
// the operand that the next one starts from, resets applied. Rows whose sequence has ended write no results.
cudaError_t launch_varied_forward(const VariedForwardArgs& args, int64_t step, cudaStream_t stream);

// Step `step` in order of running, from the last to the first; args.product is that of the one before, which is
// step + 1. -1: only takes that product.
cudaError_t launch_varied_backward(const VariedBackwardArgs& args, int64_t step, cudaStream_t stream);

// All steps with the weight on the chip: where a plan says so (plan_varied.h). Forward without `sums` and `operand`;
// leaves `last`. Backward leaves `d_initial`.
cudaError_t launch_varied_resident(const VariedForwardArgs& args, cudaStream_t stream);
cudaError_t launch_varied_resident(const VariedBackwardArgs& args, cudaStream_t stream);

}  // namespace fusedlstm::cuda
