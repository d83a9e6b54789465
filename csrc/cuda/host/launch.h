// What the host hands to the GPU kernels: plain structs of pointers and sizes, and the launchers.
//
// No torch. The same launchers serve the real library and the CPU emulation of the tests.
// Letters: T steps, B batch, H hidden units, R size of h (the projection's P, or H without one), D directions,
// N rows: T*B of a dense batch, the number of packed rows otherwise. G gates, and what a cell saves and carries:
// cells/sizes.h. Sizes and rows are int: M * D * N < 2^31. scalar_t
// is the element type of the layer, acc_t what it is computed in (double for double, float for the rest). M members of
// an ensemble, which resident kernels run in one launch where the plan says so. Then all tensors but row_offsets and
// packed lengths have one more dimension in front, [M, ...], are contiguous. For everything else M is 1.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "cells/sizes.h"
#include "dtypes.h"
#include "plan.h"

namespace fusedlstm::cuda {

inline constexpr int kMaxDirections = 2;

// Which steps of which batch row are run, and from which state. Packed batches, lengths and resets in one view.
struct RowStates {
  int T, B, N, H, R, D, M;
  // A launch of a resident kernel runs the times [begin, end): all of them, or, of one direction, a part. Then those
  // before and after it are run by other launches, and the states between them are at the `border`.
  int begin, end;
  int row_before;  // of batch row 0 at time begin - 1 in a tensor [N, ...], for the backward pass; 0 if begin is
  constexpr int steps() const { return end - begin; }
  // [B] on the device, or null: all T steps. Steps t >= lengths[b] are not run: the state of the row stays as it is and
  // nothing is written. Direction 1 goes from the end, so that it starts at every row's own last step.
  const int64_t* lengths;
  // [T] on the device, or null: step t of batch row b is row `row_offsets[t] + b` of a packed batch, else `t * B + b`.
  const int64_t* row_offsets;
  // bool [T, B], or null: before step t the states of the row become reset_state (null: zeros).
  const bool* reset;
  // Every state: scalar_t, h [D, B, R], others [D, B, H].
  const void* reset_state[kMaxStates];
  const void* initial[kMaxStates];
};

// What both passes are told of a layer.
struct LayerArgs {
  RowStates rows;
  Dtype dtype;
  CellKind cell;
  bool is_relu;  // of the RNN: its activation
  // acc_t, each as the state: forward the states and backward their gradients, exactly as they are between two parts of
  // the steps. The first part to run starts from other arguments, and the last one leaves what it comes to in others.
  void* border[kMaxStates];
};

struct ForwardArgs : LayerArgs {
  // acc_t: W_ih x of all steps, without biases. Element (t, b, gate row) of direction d stands at
  // pre_gates[d] + t * pre_gates_stride_t + b * pre_gates_stride_b + gate row; row_offsets replaces t * stride_t
  // by row_offsets[t] * stride_b.
  const void* pre_gates[kMaxDirections];
  int64_t pre_gates_stride_t;
  int pre_gates_stride_b;
  const void* bias_ih[kMaxDirections];  // scalar_t [GH], or null
  const void* bias_hh[kMaxDirections];  // scalar_t [GH], or null
  // Resident kernels only: scalar_t [G, H, weight_pitch], rows zero from H on, 16-byte aligned.
  const void* weight_hh[kMaxDirections];
  // Resident kernels with the GRID or the MESH transport only: at least exchange_bytes(plan, rows) bytes, 16-byte
  // aligned. Holds nothing before and nothing of use afterwards.
  void* exchange;
  void* output;            // scalar_t [N, D * R], one row per step and batch row
  void* last[kMaxStates];  // scalar_t, as the initial states
  void* saved;             // scalar_t [D, N, saved * H]; null for inference
  void* carried;           // acc_t [D, N, carried * H]; null for inference
};

struct BackwardArgs : LayerArgs {
  const void *output, *saved, *carried;  // as ForwardArgs left them
  // scalar_t, or null for zeros: element (row, d * R + r) at d_output + t * stride_t + b * stride_b + d * R + r;
  // with row_offsets as for pre_gates.
  const void* d_output;
  int64_t d_output_stride_t;
  int d_output_stride_b;
  const void* d_last[kMaxStates];  // scalar_t, each as the state, or null
  const void* d_carried;           // acc_t [D, N, carried * H], or null
  // Resident kernels only: W_hh transposed, scalar_t [H, G, weight_pitch], zero from H on, 16-byte aligned.
  const void* weight_hh[kMaxDirections];
  void* exchange;  // as in ForwardArgs
  // scalar_t [D, N, GH]: gradients of what enters the gates. Where a cell takes no gate apart they are equal, and only
  // the first is written.
  void *d_from_hidden, *d_from_input;
  void* d_initial[kMaxStates];      // scalar_t, each as the state
  void* d_reset_state[kMaxStates];  // acc_t, each as the state, zero before the call; null without reset
};

// Bytes of the exchange buffer that this plan needs for all directions and members; 0 for every transport but
// GRID and MESH.
int64_t exchange_bytes(const Plan& plan, const RowStates& rows);

// Elements of one padded row of W_hh: H rounded up to 16 bytes.
int64_t weight_pitch(Dtype dtype, int64_t H);

// The whole recurrence of one layer, all directions and members, in one launch (GRID and MESH: after a memset on
// the same stream). Without projection (R = H). Deterministic: fixed order of sums, no atomics. T >= 1, B >= 1.
// cudaErrorInvalidConfiguration: this build has no kernel of the plan's shape.
cudaError_t launch_forward(const Plan& plan, const ForwardArgs& args, cudaStream_t stream);
cudaError_t launch_backward(const Plan& plan, const BackwardArgs& args, cudaStream_t stream);

// ---- STREAM: one direction, step by step, with matrix products by the caller in between ---------------------------

// State of one direction between two steps.
struct ForwardStep {
  int d;
  int64_t step;      // -1: fetch the initial state; 0..T-1: the step that the sums belong to, in order of running
  const void* sums;  // acc_t [B, GH]: W_hh h of that step
  void* h;           // scalar_t [B, R]: operand of the next product
  void* carried;     // acc_t [B, carried * H]
  void* hidden;      // scalar_t [B, H]: h for the projection; null without one
};

// Runs step `step` for one direction and leaves the operand of the next one, row states applied. With a projection it
// stops at `hidden`; the caller multiplies it with W_hr and calls launch_forward_projected.
cudaError_t launch_forward_step(const ForwardArgs& args, const ForwardStep& state, cudaStream_t stream);
// projected: acc_t [B, R] = hidden W_hr^T. Stores the output row and leaves the operand of the next step in state.h.
cudaError_t launch_forward_projected(const ForwardArgs& args, const ForwardStep& state, const void* projected,
                                     cudaStream_t stream);

struct BackwardStep {
  int d;
  int64_t step;      // 0..T: its position in the order of running backward; T only finishes d_initial
  const void* sums;  // acc_t [B, R]: d_from_hidden of position step - 1 times W_hh
  void* d_h;         // acc_t [B, R]
  void* d_carried;   // acc_t [B, carried * H]
  // Projection only: scalar_t [N, R], gradient of every projected output row, written by launch_backward_projected.
  void* d_projected;
  const void* d_hidden;  // acc_t [B, H]: d_projected W_hr of this step
};

cudaError_t launch_backward_step(const BackwardArgs& args, const BackwardStep& state, cudaStream_t stream);
// The part of a projected layer's step that comes before the product with W_hr.
cudaError_t launch_backward_projected(const BackwardArgs& args, const BackwardStep& state, cudaStream_t stream);

// ---- before and after the recurrence --------------------------------------------------------------------------------

// to[0..count) = values, which travel with the launches: a copy from ordinary host memory may wait for the device, and
// a CUDA graph would repeat it after that memory is gone.
cudaError_t launch_store_values(const int64_t* values, int64_t count, int64_t* to, cudaStream_t stream);

// previous: scalar_t [D, N, R], the h that every run step started from: the output of the step before, or that of the
// initial or the reset state.
cudaError_t launch_previous_states(const RowStates& rows, Dtype dtype, const void* output, void* previous,
                                   cudaStream_t stream);

// runs: scalar_t [N, columns], a copy of `all` with zeros in the rows that are not run, whatever stands there.
cudaError_t launch_running_rows(const RowStates& rows, Dtype dtype, int64_t columns, const void* all, void* runs,
                                cudaStream_t stream);

// hidden: scalar_t [D, N, H], h of every run step as the projection saw it; of cells that a layer may project.
cudaError_t launch_hidden_states(const LayerArgs& layer, const void* saved, const void* carried, void* hidden,
                                 cudaStream_t stream);

// ---- a projected layer by a resident kernel (hidden_recurrence.h): what has to do with h itself
// ----------------------

// Adds to a direction's pre_gates what a row's h of its initial state, or of the reset state, enters a step as.
// of_initial, of_reset: acc_t [B, width], W_hh h of each; of_reset null: zeros. width: of a row of pre_gates.
cudaError_t launch_entered_states(const ForwardArgs& args, int d, int64_t width, const void* of_initial,
                                  const void* of_reset, cudaStream_t stream);

// last: scalar_t [D, B, R], the h that each row ends with: its last output, or what it started from or was reset to
// since.
cudaError_t launch_last_states(const RowStates& rows, Dtype dtype, const void* output, void* last, cudaStream_t stream);

// d_previous: acc_t [N, R], the gradient of the h that every step of direction d started from. d_projected: scalar_t
// [N, R], written in the rows that are run: that of the h that every step put out.
cudaError_t launch_projected_gradients(const BackwardArgs& args, int d, const void* d_previous, void* d_projected,
                                       cudaStream_t stream);
// Of the same, d_initial[0] and d_reset_state[0] of direction d.
cudaError_t launch_entered_gradients(const BackwardArgs& args, int d, const void* d_previous, cudaStream_t stream);

}  // namespace fusedlstm::cuda
