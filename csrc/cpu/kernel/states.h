// The states of the forward recurrence: what a time step makes of its sums, and where it goes.
//
// h is double-buffered by the parity of the step: with Split::kUnits a thread writes h of step s while others may
// still read h of step s - 1, and the team meets once per step (twice with a projection).
#pragma once

#include "cells/cell.h"
#include "cpu/division.h"
#include "gate_panel.h"
#include "row_index.h"

namespace fusedlstm::cpu {

// Everywhere: direction d, scan position s, batch row b, first hidden unit (or projected feature) `unit`.
template <class K, class Cell>
class States {
 public:
  using V = typename K::V;
  using acc = typename K::acc;
  using operand = typename K::operand;
  using storage = typename K::storage;
  static constexpr CellSizes kSizes = Cell::kSizes;
  using Panel = GatePanel<K, kSizes>;

  // Elements of a row of a carried state, and of a row of h: padded.
  const int64_t units, h_width;

  States(const ForwardArgs& args, const Cell& cell, const RowIndex& index, int64_t units, int64_t h_width)
      : units(units), h_width(h_width), a(args), cell(cell), shape(args.shape), index(index) {}

  void lay_out(Arena& arena) {
    const int64_t rows = shape.directions * shape.batch;
    for (auto& buffer : h) buffer = arena.take<operand>(rows * h_width);
    m = arena.take<operand>(shape.proj > 0 ? rows * units : 0);
    carried = arena.take<acc>(kSizes.carried * rows * units);
  }

  // The states before the first step.
  void start(const Share& share) {
    const Range rows = share.of(shape.directions * shape.batch);
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const int64_t d = i / shape.batch, b = i % shape.batch;
      const bool reset = shape.steps > 0 && index.reset(index.step(0, d), b);
      set_states(d, b, reset ? a.reset_state : a.initial);
    }
  }

  // h before step s.
  const operand* h_row(int64_t d, int64_t s, int64_t b) const { return h[s & 1] + (d * shape.batch + b) * h_width; }
  // h of the cell, before the projection.
  const operand* m_row(int64_t d, int64_t b) const { return m + (d * shape.batch + b) * units; }

  // Rows that a packed batch no longer (or not yet) has keep their state.
  void hold(Range rows, const Step& step, int64_t unit) {
    for (int64_t b = rows.begin; b < rows.end; ++b) next_h(step, b, unit, hold_h(step.d, step.s, b, unit));
  }

  // The cell of `rows` rows from b on of the block that begins with `unit`. Rows of both parts of its sums have
  // Panel::kWidth elements, as the block arranges them, but for what is added to from_hidden of the gates that are
  // apart: their bias, [gate][unit].
  void finish_rows(const acc* from_hidden, const acc* from_input, const acc* bias_hidden, int rows, const Step& step,
                   int64_t b, int64_t unit) {
    if constexpr (Panel::kUnitVectors > 1) {
      for (int r = 0; r < rows; ++r)
        finish_row(from_hidden + r * Panel::kWidth, from_input + r * Panel::kWidth, bias_hidden, step, b + r, unit);
    } else {
      for_fold<K>(Panel::fold_of(shape.hidden - unit), [&](auto constant) FUSEDLSTM_LAMBDA {
        constexpr int kFold = constant;
        for (int r = 0; r < rows; r += kFold)
          finish_folded<kFold>(from_hidden + r * Panel::kWidth, from_input + r * Panel::kWidth, bias_hidden,
                               rows - r < kFold ? rows - r : kFold, step, b + r, unit);
      });
    }
  }

  // The same of one row of a block that is not folded, whatever units it has.
  void finish_row(const acc* from_hidden, const acc* from_input, const acc* bias_hidden, const Step& step, int64_t b,
                  int64_t unit) {
    for (int q = 0; q < Panel::kUnitVectors && unit + q * K::kLanes < shape.hidden; ++q)
      finish_folded<1>(from_hidden + q * K::kLanes, from_input + q * K::kLanes, bias_hidden, 1, step, b,
                       unit + q * K::kLanes);
  }

  // One vector of the projected output of a row.
  FUSEDLSTM_INLINE void write_projected(V sum, const Step& step, int64_t b, int64_t unit) {
    const bool active = step.active(b);
    const V h_new = active ? K::round(sum) : V{};
    if (unit < shape.proj) K::store(output_row(step, b) + unit, h_new, shape.proj - unit);
    next_h(step, b, unit, active ? h_new : hold_h(step.d, step.s, b, unit));
  }

  // The last states of one block; with a projection, block 0 writes the whole h.
  void finish(int64_t d, int64_t block, Range rows) {
    const int64_t begin = block * Panel::kUnits;
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      const int64_t row = d * shape.batch + b;
      storage* h_n = static_cast<storage*>(a.last[0]) + row * shape.recurrent();
      for (int64_t u = begin; u < begin + Panel::kUnits && u < shape.hidden; u += K::kLanes) {
        for (int k = 0; k < kSizes.carried; ++k)
          K::store(static_cast<storage*>(a.last[1 + k]) + row * shape.hidden + u, load<V>(carried_row(k, d, b) + u),
                   shape.hidden - u);
        if (shape.proj == 0) K::store(h_n + u, hold_h(d, shape.steps, b, u), shape.hidden - u);
      }
      for (int64_t u = 0; shape.proj > 0 && block == 0 && u < shape.proj; u += K::kLanes)
        K::store(h_n + u, hold_h(d, shape.steps, b, u), shape.proj - u);
    }
  }

 private:
  const ForwardArgs& a;
  const Cell cell;
  const Shape& shape;
  const RowIndex& index;
  // Shared by the team.
  operand *h[2], *m;  // [D][B][h_width], [D][B][units]
  acc* carried;       // [kSizes.carried][D][B][units]

  // One vector of each carried state, and of each saved value.
  struct Carried {
    V of[at_least_one(kSizes.carried)];
  };
  struct Saved {
    V of[at_least_one(kSizes.saved)];
  };

  void set_states(int64_t d, int64_t b, const State (&from)[kMaxStates]) {
    const int64_t row = (d * shape.batch + b) * h_width;
    to_operands<K>(h[0] + row, state_row<storage>(from[0], d, b), shape.recurrent(), h_width);
    to_operands<K>(h[1] + row, nullptr, 0, h_width);  // what no unit writes is read as zeros
    for (int k = 0; k < kSizes.carried; ++k) {
      const storage* state = state_row<storage>(from[1 + k], d, b);
      for (int64_t u = 0; u < units; u += K::kLanes)
        store(carried_row(k, d, b) + u, state && u < shape.hidden ? K::load(state + u, shape.hidden - u) : V{});
    }
  }

  FUSEDLSTM_INLINE V hold_h(int64_t d, int64_t s, int64_t b, int64_t u) const {
    return K::load_operand(h[s & 1] + (d * shape.batch + b) * h_width + u);
  }

  // Writes h for the next step, or what a reset puts in its place.
  FUSEDLSTM_INLINE void next_h(const Step& step, int64_t b, int64_t u, V value) {
    if (step.resets(b)) value = reset_vector(0, step.d, b, u, shape.recurrent());
    K::store_operand(h[(step.s + 1) & 1] + (step.d * shape.batch + b) * h_width + u, value);
  }

  FUSEDLSTM_INLINE V reset_vector(int state, int64_t d, int64_t b, int64_t u, int64_t n) const {
    const storage* row = state_row<storage>(a.reset_state[state], d, b);
    return row && u < n ? K::load(row + u, n - u) : V{};
  }

  // Up to kFold rows of a folded block: their sums are transposed, block by block, so that a vector holds one gate of
  // all rows.
  template <int kFold>
  FUSEDLSTM_INLINE void finish_folded(const acc* from_hidden, const acc* from_input, const acc* bias_hidden, int rows,
                                      const Step& step, int64_t b, int64_t unit) {
    const auto sums = sums_of<kFold>(from_hidden, from_input, bias_hidden, rows);
    Carried before[kFold];
    V h_before[kFold], all_before[at_least_one(kSizes.carried)] = {};
    for (int j = 0; j < kFold; ++j) {
      for (int k = 0; k < kSizes.carried; ++k)
        before[j].of[k] = j < rows ? load<V>(carried_row(k, step.d, b + j) + unit) : V{};
      h_before[j] = kSizes.takes_h && j < rows ? hold_h(step.d, step.s, b + j, unit) : V{};
    }
    for (int k = 0; k < kSizes.carried; ++k) {
      V of_rows[kFold];
      for (int j = 0; j < kFold; ++j) of_rows[j] = before[j].of[k];
      all_before[k] = side_by_side<K, kFold>(of_rows);
    }
    const auto after = cell.template forward<typename K::Math>(
        sums, kSizes.takes_h ? side_by_side<K, kFold>(h_before) : V{}, all_before);

    V all_h[kFold];
    Carried all_carried[kFold];
    unfold<K, kFold>(after.h, all_h);
    for (int k = 0; k < kSizes.carried; ++k) {
      V of_rows[kFold];
      unfold<K, kFold>(after.carried[k], of_rows);
      for (int j = 0; j < kFold; ++j) all_carried[j].of[k] = of_rows[j];
    }
    if (a.saved) {
      Saved all_saved[kFold];
      for (int k = 0; k < kSizes.saved; ++k) {
        V of_rows[kFold];
        unfold<K, kFold>(after.saved[k], of_rows);
        for (int j = 0; j < kFold; ++j) all_saved[j].of[k] = of_rows[j];
      }
      for (int j = 0; j < rows; ++j) keep(all_saved[j], all_carried[j], step, b + j, unit);
    }
    for (int j = 0; j < rows; ++j) write_states(all_carried[j], all_h[j], before[j], step, b + j, unit);
  }

  template <int kFold>
  FUSEDLSTM_INLINE Sums<V, kSizes> sums_of(const acc* from_hidden, const acc* from_input, const acc* bias_hidden,
                                           int rows) const {
    V one[kPanelVectors], other[kPanelVectors];  // of the gates, and of what a vector has beyond them
    Sums<V, kSizes> sums{};
    if constexpr (kSizes.apart() == 0) {
      gates_of<kFold>(one, rows, [&](int64_t at) { return load<V>(from_hidden + at) + load<V>(from_input + at); });
      for (int gate = 0; gate < kSizes.gates; ++gate) sums.joined[gate] = one[gate];
    } else {
      gates_of<kFold>(one, rows, [&](int64_t at) { return load<V>(from_hidden + at); });
      gates_of<kFold>(other, rows, [&](int64_t at) { return load<V>(from_input + at); });
      for (int gate = 0; gate < kSizes.joined; ++gate) sums.joined[gate] = one[gate] + other[gate];
      for (int k = 0; k < kSizes.apart(); ++k) {
        V bias[kFold];
        for (V& of_row : bias) of_row = load<V>(bias_hidden + k * K::kLanes);
        sums.from_hidden[k] = one[kSizes.joined + k] + side_by_side<K, kFold>(bias);
        sums.from_input[k] = other[kSizes.joined + k];
      }
    }
    return sums;
  }

  // Vector by vector the gates of `rows` rows, whose sums are given by their place.
  template <int kFold, class SumsAt>
  FUSEDLSTM_INLINE void gates_of(V (&to)[kPanelVectors], int rows, SumsAt sums_at) const {
#pragma GCC unroll 4
    for (int q = 0; q * kFold < kSizes.gates; ++q) {
      V v[kFold];
#pragma GCC unroll 4
      for (int j = 0; j < kFold; ++j) v[j] = j < rows ? sums_at(j * Panel::kWidth + q * Panel::kUnits) : V{};
      transpose<K, K::kLanes / kFold>(v);
#pragma GCC unroll 4
      for (int j = 0; j < kFold; ++j) to[q * kFold + j] = v[j];
    }
  }

  acc* carried_row(int k, int64_t d, int64_t b) const {
    return carried + ((k * shape.directions + d) * shape.batch + b) * units;
  }

  // What backward needs of a step: zeros where the row does not run.
  FUSEDLSTM_INLINE void keep(Saved saved, Carried states, const Step& step, int64_t b, int64_t unit) {
    if (!step.active(b)) saved = Saved{}, states = Carried{};
    const int64_t n = shape.hidden - unit, row = step.d * a.row_count + step.row(b);
    for (int k = 0; k < kSizes.saved; ++k)
      K::store(static_cast<storage*>(a.saved) + (row * kSizes.saved + k) * shape.hidden + unit, saved.of[k], n);
    for (int k = 0; k < kSizes.carried; ++k)
      store_some(static_cast<acc*>(a.carried) + (row * kSizes.carried + k) * shape.hidden + unit, states.of[k], n);
  }

  // The states after a step, and the output: the cell's if the row runs, else those before it and zeros.
  FUSEDLSTM_INLINE void write_states(const Carried& after, V h, const Carried& before, const Step& step, int64_t b,
                                     int64_t unit) {
    const bool active = step.active(b);
    for (int k = 0; k < kSizes.carried; ++k) {
      V next = active ? after.of[k] : before.of[k];
      if (step.resets(b)) next = reset_vector(1 + k, step.d, b, unit, shape.hidden);
      store(carried_row(k, step.d, b) + unit, next);
    }
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
