// What the CPU kernels of one layer read and write, as plain structs: no torch, no standard containers.
//
// T steps, B batch rows, I input features, H hidden units, P projected features (0: none), R = P or H, D directions.
// `Storage` is the dtype of the tensors, `acc` float (double for float64). Unless a stride is given, rows are dense.
#pragma once

#include <cstdint>

namespace fusedlstm::cpu {

struct Shape {
  int64_t steps, batch, input, hidden, proj, directions;
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
  const void* ih;       // [4H, I]
  const void* hh;       // [4H, R]
  const void* bias_ih;  // [4H] or null
  const void* bias_hh;  // [4H] or null
  const void* hr;       // [P, H] or null
};

struct State {       // one row a batch element, unit stride within a row
  const void* data;  // null: zeros
  int64_t direction, batch;
};

struct ForwardArgs {
  Shape shape;
  Rows rows;
  RowData input;
  State h_0, c_0, reset_h, reset_c;
  Weights weights[2];
  void* output;       // [N, D * R], storage
  void* h_n;          // [D, B, R], storage
  void* c_n;          // [D, B, H], storage
  void* gates;        // [D, N, 4H], storage, activated; null: inference
  void* cell_states;  // [D, N, H], acc; null: inference
  int64_t row_count;  // N
};

struct BackwardArgs {
  Shape shape;
  Rows rows;
  RowData input, d_output;  // d_output.data null: zeros
  State h_0, c_0, reset_h, reset_c, d_h_n, d_c_n;
  Weights weights[2];
  const void* output;         // [N, D * R]
  const void* gates;          // [D, N, 4H]
  const void* cell_states;    // [D, N, H], acc
  const void* d_cell_states;  // [D, N, H], acc, or null
  int64_t row_count;
  // Results, each null where it is not needed; storage dtype, contiguous.
  void* d_input;                // [N, I]
  void *d_h_0, *d_c_0;          // [D, B, R], [D, B, H]
  void *d_reset_h, *d_reset_c;  // the same shapes
  void *d_weight_ih[2], *d_weight_hh[2], *d_bias[2], *d_weight_hr[2];
};

}  // namespace fusedlstm::cpu
