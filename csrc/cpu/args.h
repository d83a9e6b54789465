// What the CPU kernels of one layer read and write, as plain structs: no torch, no standard containers.
//
// T steps, B batch rows, I input features, H hidden units, P projected features (0: none), R = P or H, D directions;
// G gates, and what a cell saves and carries: cells/sizes.h.
// `Storage` is the dtype of the tensors, `acc` float (double for float64). Unless a stride is given, rows are dense.
#pragma once

#include <cstdint>

#include "cells/sizes.h"
#include "progress.h"

namespace fusedlstm::cpu {

struct Shape {
  int64_t steps, batch, input, hidden, proj, directions, gates;
  int64_t recurrent() const { return proj > 0 ? proj : hidden; }
};

// Which rows exist and run. A *row* is one batch element at one time step.
//   dense:   row (t, b) is t * batch + b; with `lengths`, steps t >= lengths[b] are not run
//   packed:  row (t, b) is offsets[t] + b and exists for b < offsets[t + 1] - offsets[t]; `lengths` says the same
struct Rows {
  const int64_t* offsets;  // [T + 1], or null: dense
  const int64_t* lengths;  // [B], or null: every step runs
  const bool* reset;       // element (t, b) at t * reset_step + b * reset_batch: h and c are replaced before step t
  int64_t reset_step, reset_batch;
};

// A matrix whose rows are found by (step, batch row): data + t * step + b * batch, unit stride within a row.
// Packed data have row(t, b) = data + (offsets[t] + b) * batch.
struct RowData {
  const void* data;
  int64_t step, batch;
};

struct Weights {        // of one direction, storage dtype, contiguous
  const void* ih;       // [GH, I]
  const void* hh;       // [GH, R]
  const void* bias_ih;  // [GH] or null
  const void* bias_hh;  // [GH] or null
  const void* hr;       // [P, H] or null
};

struct State {       // one row a batch element, unit stride within a row
  const void* data;  // null: zeros
  int64_t direction, batch;
};

// What both passes are told of a layer.
struct LayerArgs {
  Shape shape;
  Rows rows;
  int64_t row_count;  // N
  RowData input;
  State initial[kMaxStates], reset_state[kMaxStates];
  Weights weights[2];
  bool is_relu;  // of the RNN: its activation
  // Of layers that run beside each other, each by one thread. Null: nobody does.
  const Progress* awaited;  // of the layer that makes the input, backward d_output
  Progress* reported;       // of this one, for the layer that it makes its output, backward d_input, for
};

struct ForwardArgs : LayerArgs {
  const char* frozen;      // weights as LayerKernels::freeze made them, in place of `weights`; null: none
  void* output;            // [N, D * R], storage
  void* last[kMaxStates];  // storage
  void* saved;             // [D, N, saved * H], storage; null: inference
  void* carried;           // [D, N, carried * H], acc; null: inference
};

// Of each row of an int8 weight the sum of its integers; behind them the largest of all integers, without its sign.
struct RowSums {
  const void* data;
  bool is_narrow;  // int16_t, of so few columns that they fit; else int32_t
};

// int8 weights of one direction, in panels (kernel/quantized_product.h), contiguous; a row's scale is a real weight by
// its integer.
struct QuantizedWeights {
  const int8_t *ih, *hh, *hr;                   // [blocks, G, ceil(k / 4), units of a panel, 4]; hr: null or G = 1
  const float *scale_ih, *scale_hh, *scale_hr;  // [GH], [GH], [P]
  RowSums sum_ih, sum_hh, sum_hr;               // the same and one more
  const float*
      bias;  // [GH], of joined gates the sum of both, of others the input's; then theirs of h [apart H]; or null
};

struct QuantizedArgs : ForwardArgs {  // without `weights` and `frozen`; inference
  QuantizedWeights quantized[2];
};

struct BackwardArgs : LayerArgs {
  RowData d_output;  // data null: zeros
  State d_last[kMaxStates];
  const void* output;     // [N, D * R]
  const void* saved;      // [D, N, saved * H]
  const void* carried;    // [D, N, carried * H], acc
  const void* d_carried;  // the same, or null
  const void* entered;    // of one direction, [N, R]: h as each row's product had it, where that is another; or null
  // Results, each null where it is not needed; storage dtype, contiguous.
  void* d_input;  // [N, I]
  void *d_initial[kMaxStates], *d_reset_state[kMaxStates];
  void *d_weight_ih[2], *d_weight_hh[2], *d_weight_hr[2];
  // Where both parts of all gates have the same gradient, only the first is written: the other one equals it.
  void *d_bias_ih[2], *d_bias_hh[2];
};

}  // namespace fusedlstm::cpu
