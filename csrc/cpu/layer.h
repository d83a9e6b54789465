// What the CPU kernels of one layer read and write, as plain structs: no torch, no standard containers.
//
// T steps, B batch rows, I input features, H hidden units, P projected features (0: none), R = P or H, D directions.
// `Storage` is the dtype of the tensors, `acc` float (double for float64). Unless a stride is given, rows are dense.
#pragma once

#include <cstdint>

namespace fusedlstm::cpu {

enum class DType : int { kFloat32, kFloat64, kBFloat16, kFloat16 };
inline constexpr int kDTypes = 4;

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

// How the work of a layer is divided among the threads of a team.
enum class Split : int {
  kRows,   // (direction, group of batch rows) each run alone through all steps: no synchronisation
  kUnits,  // hidden units are divided; the team meets once per time step
};

struct Plan {
  bool direct;  // forward weights are read where they are: no packing; for a handful of rows in all
  Split split;
  int threads;
};

// Items begin .. end - 1.
struct Range {
  int64_t begin, end;
  bool operator==(const Range&) const = default;
};
constexpr Range part(int64_t n, int64_t index, int64_t count) {
  return {n * index / count, n * (index + 1) / count};
}

// The shares first .. last - 1 of `count`, which one thread works on: usually one share, more where the team has fewer
// threads. `meet` returns when all shares have called it; what was written before is then visible to all. A meeting
// that took too long is the team's last one: the thread that has share 0 comes out of it with all shares, the others
// with none, and none of them waits again. So what to work on is asked for anew after each meeting.
struct Share {
  int first, last, count;
  void* team;       // null: nobody to meet
  int64_t met = 0;  // when this thread last came to a meeting, in the team's own unit
  void meet();      // team.cpp
  Range of(int64_t n) const { return {n * first / count, n * last / count}; }
};

// What runs through all time steps together: some batch rows of some directions. Where the rows are divided it is
// alone and meets nobody; where the units are, it is the whole layer and `team` is the share of it to work on.
struct Task {
  Range directions, rows;
  int64_t group;  // of rows
  Share* team;
  void meet() const {
    if (team) team->meet();
  }
  // The items to work on, of `n` in each direction.
  Range of(int64_t n) const {
    return team ? team->of(directions.end * n) : Range{directions.begin * n, directions.end * n};
  }
};

// Groups of rows in one direction: as many as keep every thread busy.
constexpr int64_t row_groups(const Plan& plan, const Shape& shape) {
  return plan.split == Split::kUnits ? 1 : (plan.threads + shape.directions - 1) / shape.directions;
}

// The most batch rows of a group.
constexpr int64_t rows_of_group(const Plan& plan, const Shape& shape) {
  const int64_t groups = row_groups(plan, shape);
  return (shape.batch + groups - 1) / groups;
}

// Runs body(direction, items) for a range of items, of which each direction has `n`.
template <class Body>
void for_each_direction(Range range, int64_t n, Body body) {
  for (int64_t i = range.begin; i < range.end;) {
    const int64_t d = i / n, end = range.end < (d + 1) * n ? range.end : (d + 1) * n;
    body(d, Range{i - d * n, end - d * n});
    i = end;
  }
}

// Runs body(task) for every task of a share.
template <class Body>
void for_each_task(const Plan& plan, const Shape& shape, Share& share, Body body) {
  if (plan.split == Split::kUnits) return body(Task{{0, shape.directions}, {0, shape.batch}, 0, &share});
  const int64_t groups = row_groups(plan, shape);
  const Range tasks = share.of(shape.directions * groups);
  for (int64_t i = tasks.begin; i < tasks.end; ++i) {
    const int64_t d = i / groups, group = i % groups;
    body(Task{{d, d + 1}, part(shape.batch, group, groups), group, nullptr});
  }
}

struct LayerKernels {
  int64_t (*forward_bytes)(const ForwardArgs&, const Plan&);  // workspace, 64-byte aligned
  void (*forward)(const ForwardArgs&, const Plan&, Share&, char* workspace);
  int64_t (*backward_bytes)(const BackwardArgs&, const Plan&);
  void (*backward)(const BackwardArgs&, const Plan&, Share&, char* workspace);
};

struct Kernels {
  const char* isa;
  LayerKernels layer[kDTypes];
};

// One table per instruction set, each defined in kernels_<isa>.cpp; the chooser (isa.h) picks one.
extern const Kernels kBaselineKernels, kAvx2Kernels, kAvx512Kernels, kAvx512Bf16Kernels;

}  // namespace fusedlstm::cpu
