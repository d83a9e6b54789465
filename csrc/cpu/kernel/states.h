// The states of the forward recurrence: what a time step makes of its pre-activations, and where it goes.
//
// h is double-buffered by the parity of the step: with Split::kUnits a thread writes h of step s while others may
// still read h of step s - 1, and the team meets once per step (twice with a projection).
#pragma once

#include "cells/lstm.h"
#include "cpu/division.h"
#include "pack.h"
#include "row_index.h"

namespace fusedlstm::cpu {

// Everywhere: direction d, scan position s, batch row b, first hidden unit (or projected feature) `unit`.
template <class K>
class States {
 public:
  using V = typename K::V;
  using acc = typename K::acc;
  using operand = typename K::operand;
  using storage = typename K::storage;

  // Elements of a row of c, and of a row of h: padded.
  const int64_t units, h_width;

  States(const ForwardArgs& args, const RowIndex& index, int64_t units, int64_t h_width)
      : units(units), h_width(h_width), a(args), shape(args.shape), index(index) {}

  void lay_out(Arena& arena) {
    const int64_t rows = shape.directions * shape.batch;
    for (auto& buffer : h) buffer = arena.take<operand>(rows * h_width);
    m = arena.take<operand>(shape.proj > 0 ? rows * units : 0);
    c = arena.take<acc>(rows * units);
  }

  // The states before the first step.
  void start(const Share& share) {
    const Range rows = share.of(shape.directions * shape.batch);
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const int64_t d = i / shape.batch, b = i % shape.batch;
      const bool reset = shape.steps > 0 && index.reset(index.step(0, d), b);
      set_state(d, b, reset ? a.reset_h : a.h_0, reset ? a.reset_c : a.c_0);
    }
  }

  // h before step s.
  const operand* h_row(int64_t d, int64_t s, int64_t b) const { return h[s & 1] + (d * shape.batch + b) * h_width; }
  // o * tanh(c) before the projection.
  const operand* m_row(int64_t d, int64_t b) const { return m + (d * shape.batch + b) * units; }

  // Rows that a packed batch no longer (or not yet) has keep their state.
  void hold(Range rows, const Step& step, int64_t unit) {
    for (int64_t b = rows.begin; b < rows.end; ++b) next_h(step, b, unit, hold_h(step.d, step.s, b, unit));
  }

  // The cell of `rows` rows from b on of a block with `fold` gates in a vector. Its pre-activations are one + other, of
  // which each row has kPanel elements.
  void finish_rows(const acc* one, const acc* other, int rows, int fold, const Step& step, int64_t b, int64_t unit) {
    for_fold<K>(fold, [&](auto constant) FUSEDLSTM_LAMBDA {
      constexpr int kFold = constant;
      for (int r = 0; r < rows; r += kFold)
        finish_folded<kFold>(one + r * K::kPanel, other + r * K::kPanel, rows - r < kFold ? rows - r : kFold, step,
                             b + r, unit);
    });
  }

  // One vector of the projected output of a row.
  FUSEDLSTM_INLINE void write_projected(V sum, const Step& step, int64_t b, int64_t unit) {
    const bool active = step.active(b);
    const V h_new = active ? K::round(sum) : V{};
    if (unit < shape.proj) K::store(output_row(step, b) + unit, h_new, shape.proj - unit);
    next_h(step, b, unit, active ? h_new : hold_h(step.d, step.s, b, unit));
  }

  // h_n and c_n of one block; with a projection, block 0 writes the whole h_n.
  void finish(int64_t d, int64_t block, Range rows) {
    const int64_t unit = block * K::kLanes;
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      const int64_t row = d * shape.batch + b;
      K::store(static_cast<storage*>(a.c_n) + row * shape.hidden + unit, load<V>(c + row * units + unit),
               shape.hidden - unit);
      storage* h_n = static_cast<storage*>(a.h_n) + row * shape.recurrent();
      if (shape.proj == 0) K::store(h_n + unit, hold_h(d, shape.steps, b, unit), shape.hidden - unit);
      for (int64_t u = 0; shape.proj > 0 && block == 0 && u < shape.proj; u += K::kLanes)
        K::store(h_n + u, hold_h(d, shape.steps, b, u), shape.proj - u);
    }
  }

 private:
  const ForwardArgs& a;
  const Shape& shape;
  const RowIndex& index;
  // Shared by the team.
  operand *h[2], *m;  // [D][B][h_width], [D][B][units]
  acc* c;             // [D][B][units]

  void set_state(int64_t d, int64_t b, const State& from_h, const State& from_c) {
    const int64_t row = (d * shape.batch + b) * h_width;
    to_operands<K>(h[0] + row, state_row<storage>(from_h, d, b), shape.recurrent(), h_width);
    to_operands<K>(h[1] + row, nullptr, 0, h_width);  // what no unit writes is read as zeros
    const storage* from = state_row<storage>(from_c, d, b);
    for (int64_t u = 0; u < units; u += K::kLanes)
      store(c + (d * shape.batch + b) * units + u,
            from && u < shape.hidden ? K::load(from + u, shape.hidden - u) : V{});
  }

  FUSEDLSTM_INLINE V hold_h(int64_t d, int64_t s, int64_t b, int64_t u) const {
    return K::load_operand(h[s & 1] + (d * shape.batch + b) * h_width + u);
  }

  // Writes h for the next step, or what a reset puts in its place.
  FUSEDLSTM_INLINE void next_h(const Step& step, int64_t b, int64_t u, V value) {
    if (step.resets(b)) {
      const storage* row = state_row<storage>(a.reset_h, step.d, b);
      value = row && u < shape.recurrent() ? K::load(row + u, shape.recurrent() - u) : V{};
    }
    K::store_operand(h[(step.s + 1) & 1] + (step.d * shape.batch + b) * h_width + u, value);
  }

  // Up to kFold rows of a folded block: their gates are transposed, block by block, so that a vector holds one gate of
  // all rows.
  template <int kFold>
  FUSEDLSTM_INLINE void finish_folded(const acc* one, const acc* other, int rows, const Step& step, int64_t b,
                                      int64_t unit) {
    V gates[kPanelVectors], cells[kFold];
#pragma GCC unroll 4
    for (int q = 0; q < kPanelVectors / kFold; ++q) {
      V v[kFold];
#pragma GCC unroll 4
      for (int j = 0; j < kFold; ++j) {
        const int64_t at = j * K::kPanel + q * K::kLanes;
        v[j] = j < rows ? load<V>(one + at) + load<V>(other + at) : V{};
      }
      transpose<K, K::kLanes / kFold>(v);
#pragma GCC unroll 4
      for (int j = 0; j < kFold; ++j) gates[q * kFold + j] = v[j];
    }
#pragma GCC unroll 4
    for (int j = 0; j < kFold; ++j) cells[j] = j < rows ? load<V>(c_row(step.d, b + j) + unit) : V{};
    const auto y =
        cell_forward<V, typename K::Math>(gates[0], gates[1], gates[2], gates[3], side_by_side<K, kFold>(cells));
    V all_c[kFold], all_h[kFold];
    unfold<K, kFold>(y.c, all_c);
    unfold<K, kFold>(y.h, all_h);
    if (a.gates) {
      V all_i[kFold], all_f[kFold], all_g[kFold], all_o[kFold];
      unfold<K, kFold>(y.i, all_i);
      unfold<K, kFold>(y.f, all_f);
      unfold<K, kFold>(y.g, all_g);
      unfold<K, kFold>(y.o, all_o);
      for (int j = 0; j < rows; ++j)
        write_gates({all_i[j], all_f[j], all_g[j], all_o[j], all_c[j], all_h[j]}, step, b + j, unit);
    }
    for (int j = 0; j < rows; ++j) write_states(all_c[j], all_h[j], cells[j], step, b + j, unit);
  }

  acc* c_row(int64_t d, int64_t b) const { return c + (d * shape.batch + b) * units; }

  // What backward needs of a step: zeros where the row does not run.
  FUSEDLSTM_INLINE void write_gates(CellForward<V> y, const Step& step, int64_t b, int64_t unit) {
    if (!step.active(b)) y = {V{}, V{}, V{}, V{}, V{}, V{}};
    const int64_t n = shape.hidden - unit, row = step.d * a.row_count + step.row(b);
    storage* gates = static_cast<storage*>(a.gates) + row * 4 * shape.hidden + unit;
    K::store(gates, y.i, n);
    K::store(gates + shape.hidden, y.f, n);
    K::store(gates + 2 * shape.hidden, y.g, n);
    K::store(gates + 3 * shape.hidden, y.o, n);
    store_some(static_cast<acc*>(a.cell_states) + row * shape.hidden + unit, y.c, n);
  }

  // The states after a step, and the output: c and h if the row runs, else those before it and zeros.
  FUSEDLSTM_INLINE void write_states(V c, V h, V c_prev, const Step& step, int64_t b, int64_t unit) {
    const bool active = step.active(b);
    V c_next = active ? c : c_prev;
    if (step.resets(b)) {
      const storage* reset = state_row<storage>(a.reset_c, step.d, b);
      c_next = reset ? K::load(reset + unit, shape.hidden - unit) : V{};
    }
    store(c_row(step.d, b) + unit, c_next);
    if (shape.proj > 0) {
      K::store_operand(m + (step.d * shape.batch + b) * units + unit, active ? h : V{});
    } else {
      const V h_new = active ? K::round(h) : V{};
      K::store(output_row(step, b) + unit, h_new, shape.hidden - unit);
      next_h(step, b, unit, active ? h_new : hold_h(step.d, step.s, b, unit));
    }
  }

  storage* output_row(const Step& step, int64_t b) const {
    const int64_t row = step.row(b) * shape.directions + step.d;
    return static_cast<storage*>(a.output) + row * shape.recurrent();
  }
};

}  // namespace fusedlstm::cpu
