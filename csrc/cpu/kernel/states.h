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
// Panel: how the gates of a block lie in its sums (gate_panel.h, quantized_forward.h).
template <class K, class Cell, class Panel>
class States {
 public:
  using V = typename K::V;
  using acc = typename K::acc;
  using operand = typename K::operand;
  using storage = typename K::storage;
  static constexpr CellSizes kSizes = Cell::kSizes;

  // Elements of a row of a carried state, and of a row of h: padded.
  const int64_t units, h_width;

  States(const ForwardArgs& args, const Cell& cell, const RowIndex& index, int64_t units, int64_t h_width)
      : units(units), h_width(h_width), a(args), cell(cell), shape(args.shape), index(index) {}

  void lay_out(Arena& arena) {
    const int64_t rows = shape.directions * shape.batch;
    for (auto& buffer : h) buffer = arena.take<operand>(rows * h_width);
    m = arena.take<operand>(projects() ? rows * units : 0);
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
  // apart: their bias, [gate][unit of the block].
  void finish_rows(const acc* from_hidden, const acc* from_input, const acc* bias_hidden, int rows, const Step& step,
                   int64_t b, int64_t unit) {
    for (int q = 0; q < Panel::kUnitVectors && unit + q * K::kLanes < shape.hidden; ++q) {
      const Lines lines(*this, step, b, unit + q * K::kLanes);
      for_fold<K>(Panel::fold_of(shape.hidden - unit), [&](auto constant) FUSEDLSTM_LAMBDA {
        constexpr int kFold = constant;
        if constexpr (kFold == 1)
          return finish_vector(from_hidden + q * K::kLanes, from_input + q * K::kLanes, bias_hidden + q * K::kLanes,
                               rows, lines);
        for (int r = 0; r < rows; r += kFold)
          finish_folded<kFold>(from_hidden + r * Panel::kWidth, from_input + r * Panel::kWidth, bias_hidden,
                               rows - r < kFold ? rows - r : kFold, lines, r);
      });
    }
  }

  // The same of one row of a block that is not folded, whatever units it has.
  void finish_row(const acc* from_hidden, const acc* from_input, const acc* bias_hidden, const Step& step, int64_t b,
                  int64_t unit) {
    for (int q = 0; q < Panel::kUnitVectors && unit + q * K::kLanes < shape.hidden; ++q)
      finish_vector(from_hidden + q * K::kLanes, from_input + q * K::kLanes, bias_hidden + q * K::kLanes, 1,
                    Lines(*this, step, b, unit + q * K::kLanes));
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
        if (!projects()) K::store(h_n + u, hold_h(d, shape.steps, b, u), shape.hidden - u);
      }
      for (int64_t u = 0; projects() && block == 0 && u < shape.proj; u += K::kLanes)
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

  // The code is left out of cells that never do.
  bool projects() const { return kSizes.projects && shape.proj > 0; }

  FUSEDLSTM_NOINLINE void set_states(int64_t d, int64_t b, const State (&from)[kMaxStates]) {
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
    K::store_operand(next_h_row(step, b) + u, value);
  }
  operand* next_h_row(const Step& step, int64_t b) const {
    return h[(step.s + 1) & 1] + (step.d * shape.batch + b) * h_width;
  }

  FUSEDLSTM_INLINE V reset_vector(int state, int64_t d, int64_t b, int64_t u, int64_t n) const {
    const storage* row = state_row<storage>(a.reset_state[state], d, b);
    return row && u < n ? K::load(row + u, n - u) : V{};
  }

  // One vector of units of the rows b, b + 1 .. of a step: where it is and goes. Values, worked out once for a tile:
  // behind each store of a result the compiler would read again what they follow from.
  struct Lines {
    const Step step;
    const int64_t b, unit, n;  // n: units from here on
    acc* const carried;        // of row b, as all of these
    const operand* const h_before;
    operand *const h_after, *const m;
    storage *const output, *const saved;  // null: inference
    acc* const all_carried;
    const int64_t units, h_width, output_width, hidden, carried_apart;

    FUSEDLSTM_INLINE Lines(const States& o, const Step& step, int64_t b, int64_t unit)
        : step(step),
          b(b),
          unit(unit),
          n(o.shape.hidden - unit),
          carried(o.carried_row(0, step.d, b) + unit),
          h_before(o.h_row(step.d, step.s, b) + unit),
          h_after(o.projects() ? nullptr : o.next_h_row(step, b) + unit),
          m(o.projects() ? o.m + (step.d * o.shape.batch + b) * o.units + unit : nullptr),
          output(o.output_row(step, b) + unit),
          saved(o.a.saved
                    ? static_cast<storage*>(o.a.saved) + o.saved_row(step, b) * kSizes.saved * o.shape.hidden + unit
                    : nullptr),
          all_carried(saved ? static_cast<acc*>(o.a.carried) + o.saved_row(step, b) * kSizes.carried * o.shape.hidden +
                                  unit
                            : nullptr),
          units(o.units),
          h_width(o.h_width),
          output_width(o.shape.directions * o.shape.hidden),
          hidden(o.shape.hidden),
          carried_apart(o.shape.directions * o.shape.batch * o.units) {}

    FUSEDLSTM_INLINE bool is_plain() const { return !step.lengths && !step.reset_after && !m && n >= K::kLanes; }
    FUSEDLSTM_INLINE bool keeps() const { return K::kTrains && saved; }
    FUSEDLSTM_INLINE acc* carried_of(int k, int r) const { return carried + k * carried_apart + r * units; }
  };

  // The cell for up to kFold rows from `first` on of a folded block: their sums are transposed, block by block, so that
  // a vector holds one gate of all rows.
  template <int kFold>
  FUSEDLSTM_INLINE void finish_folded(const acc* from_hidden, const acc* from_input, const acc* bias_hidden, int rows,
                                      const Lines& lines, int first) {
    const auto sums = sums_of<kFold>(from_hidden, from_input, bias_hidden, rows);
    Carried before[kFold];
    V h_before[kFold], all_before[at_least_one(kSizes.carried)] = {};
    for (int j = 0; j < kFold; ++j) {
      for (int k = 0; k < kSizes.carried; ++k)
        before[j].of[k] = j < rows ? load<V>(lines.carried_of(k, first + j)) : V{};
      h_before[j] = kSizes.takes_h && j < rows ? K::load_operand(lines.h_before + (first + j) * lines.h_width) : V{};
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
    if (lines.keeps()) {
      Saved all_saved[kFold];
      for (int k = 0; k < kSizes.saved; ++k) {
        V of_rows[kFold];
        unfold<K, kFold>(after.saved[k], of_rows);
        for (int j = 0; j < kFold; ++j) all_saved[j].of[k] = of_rows[j];
      }
      for (int j = 0; j < rows; ++j) keep(all_saved[j], all_carried[j], lines, first + j);
    }
    for (int j = 0; j < rows; ++j) write_states(all_carried[j], all_h[j], before[j], lines, first + j);
  }

  // The same of one vector that is not folded. Mostly nothing is out of the ordinary, a whole vector of rows that all
  // run, not reset, not projected: then with half the instructions.
  void finish_vector(const acc* from_hidden, const acc* from_input, const acc* bias_hidden, int rows,
                     const Lines& lines) {
    if (lines.is_plain()) return finish_plain(from_hidden, from_input, bias_hidden, rows, lines);
    for (int r = 0; r < rows; ++r)
      finish_folded<1>(from_hidden + r * Panel::kWidth, from_input + r * Panel::kWidth, bias_hidden, 1, lines, r);
  }

  FUSEDLSTM_INLINE void finish_plain(const acc* from_hidden, const acc* from_input, const acc* bias_hidden, int rows,
                                     const Lines& lines) {
    for (int r = 0; r < rows; ++r) {
      const auto sums = sums_of<1>(from_hidden + r * Panel::kWidth, from_input + r * Panel::kWidth, bias_hidden, 1);
      V before[at_least_one(kSizes.carried)] = {};
      for (int k = 0; k < kSizes.carried; ++k) before[k] = load<V>(lines.carried_of(k, r));
      const V h_before = kSizes.takes_h ? K::load_operand(lines.h_before + r * lines.h_width) : V{};
      const auto after = cell.template forward<typename K::Math>(sums, h_before, before);
      const V h = K::round(after.h);
      for (int k = 0; k < kSizes.carried; ++k) store(lines.carried_of(k, r), after.carried[k]);
      K::store(lines.output + r * lines.output_width, h);
      K::store_operand(lines.h_after + r * lines.h_width, h);
      if (!lines.keeps()) continue;
      for (int k = 0; k < kSizes.saved; ++k)
        K::store(lines.saved + (r * kSizes.saved + k) * lines.hidden, after.saved[k]);
      for (int k = 0; k < kSizes.carried; ++k)
        store(lines.all_carried + (r * kSizes.carried + k) * lines.hidden, after.carried[k]);
    }
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
        for (V& of_row : bias) of_row = load<V>(bias_hidden + k * Panel::kUnits);
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

  // What backward needs of a step: zeros where the row does not run. Structures by reference: GCC copies them in
  // halves, which a load of the whole then waits for.
  FUSEDLSTM_INLINE void keep(const Saved& saved, const Carried& states, const Lines& lines, int r) {
    const bool active = lines.step.active(lines.b + r);
    for (int k = 0; k < kSizes.saved; ++k)
      K::store(lines.saved + (r * kSizes.saved + k) * lines.hidden, active ? saved.of[k] : V{}, lines.n);
    for (int k = 0; k < kSizes.carried; ++k)
      store_some(lines.all_carried + (r * kSizes.carried + k) * lines.hidden, active ? states.of[k] : V{}, lines.n);
  }

  // The states after a step, and the output: the cell's if the row runs, else those before it and zeros. What pads the
  // units of h is zero: it meets weights of zero in the next product, and after an infinite input it may be NaN.
  FUSEDLSTM_INLINE void write_states(const Carried& after, V h, const Carried& before, const Lines& lines, int r) {
    h = first_lanes(h, lines.n);
    const int64_t b = lines.b + r;
    const bool active = lines.step.active(b), resets = lines.step.resets(b);
    for (int k = 0; k < kSizes.carried; ++k) {
      V next = active ? after.of[k] : before.of[k];
      if (resets) next = reset_vector(1 + k, lines.step.d, b, lines.unit, lines.hidden);
      store(lines.carried_of(k, r), next);
    }
    if (kSizes.projects && lines.m) {
      K::store_operand(lines.m + r * lines.units, active ? h : V{});
    } else {
      const V h_new = active ? K::round(h) : V{};
      K::store(lines.output + r * lines.output_width, h_new, lines.n);
      V next = active ? h_new : K::load_operand(lines.h_before + r * lines.h_width);
      if (resets) next = reset_vector(0, lines.step.d, b, lines.unit, lines.hidden);
      K::store_operand(lines.h_after + r * lines.h_width, next);
    }
  }

  storage* output_row(const Step& step, int64_t b) const {
    const int64_t row = step.row(b) * shape.directions + step.d;
    return static_cast<storage*>(a.output) + row * shape.recurrent();
  }
  // Among the rows of what backward needs.
  int64_t saved_row(const Step& step, int64_t b) const { return step.d * a.row_count + step.row(b); }
};

}  // namespace fusedlstm::cpu
