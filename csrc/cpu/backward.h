// The backward recurrence of one layer, and the gradients of its input and weights.
//
// Going back one time step, the gradient of h is W_hh^T times the gate gradients of the step after it, plus what the
// output received. A tile of it (batch rows by four vectors of hidden units) is finished in registers, turned into gate
// gradients by the cell's derivative, and stored once; the gate gradients of all steps are both the operand of the next
// tile and the material of the large products for the weights and the input, made after the recurrence by the same
// team.
//
// `carry` is the gradient of h that skips steps: d_h_n until a row's last step, and through rows that do not run.
#pragma once

#include "../cell.h"
#include "layer.h"
#include "outer.h"
#include "pack.h"
#include "row_index.h"

namespace fusedlstm::cpu {

inline constexpr int64_t kInputRows = 192;  // of one block of the input gradient

template <class K>
class Backward {
 public:
  using V = typename K::V;
  using acc = typename K::acc;
  using operand = typename K::operand;
  using storage = typename K::storage;

  Backward(const BackwardArgs& args, const Plan& plan)
      : a(args),
        shape(args.shape),
        plan(plan),
        index(args.shape, args.rows),
        gates(4 * shape.hidden),
        recurrent(shape.recurrent()),
        panels(round_up(recurrent, K::kPanel) / K::kPanel),
        unit_panels(round_up(shape.hidden, K::kPanel) / K::kPanel),
        input_panels(round_up(shape.input, K::kPanel) / K::kPanel),
        width(panels * K::kPanel),
        units(unit_panels * K::kPanel),
        proj_depth(round_up(shape.proj, K::kDepth)),
        row_groups((plan.threads + shape.directions - 1) / shape.directions),
        zero_width(shape.input > recurrent ? shape.input : recurrent) {}

  int64_t workspace_bytes() {
    Arena arena{nullptr};
    lay_out(arena, 0);
    return arena.used;
  }

  void run(Share share, char* memory) {
    Arena arena{memory};
    lay_out(arena, share.first);
    pack(share);
    share.meet();
    if (plan.split == Split::kRows) {
      const Range tasks = share.of(shape.directions * row_groups);
      for (int64_t task = tasks.begin; task < tasks.end; ++task) {
        const int64_t d = task / row_groups;
        steps(part(shape.batch, task % row_groups, row_groups), {d * panels, (d + 1) * panels},
              {d * unit_panels, (d + 1) * unit_panels}, nullptr);
      }
    } else {
      steps({0, shape.batch}, share.of(shape.directions * panels), share.of(shape.directions * unit_panels), &share);
    }
    share.meet();
    state_gradients(share);
    if (a.d_input) input_gradient(share);
    for (int64_t d = 0; d < shape.directions; ++d) weight_gradients(d, share);
  }

 private:
  const BackwardArgs& a;
  const Shape& shape;
  const Plan& plan;
  const RowIndex index;
  const int64_t gates, recurrent, panels, unit_panels, input_panels, width, units, proj_depth, row_groups, zero_width;
  // Shared by the team.
  operand *panels_h, *panels_r,
      *panels_x;     // W_hh [D][panels] of 4H; W_hr [D][unit_panels] of P; W_ih [D][input_panels] of 4H
  operand* d_gates;  // [D][N][4H]
  operand* d_y;      // gradient of the projected output, [D][N][proj_depth]
  storage* hidden;   // o * tanh(c), [D][N][H], for d_weight_hr
  storage* zeros;    // a row of zeros, of the input's width or of h's
  acc *carry, *d_c, *d_reset_h, *d_reset_c;  // [D][B][width], [D][B][units], and of resets the same
  Outer<K> outer, projection;                // scratch of this share
  acc* scratch;                              // of this share, partial sums of panel_product

  void lay_out(Arena& arena, int64_t share) {
    const int64_t d = shape.directions, rows = d * a.row_count, states = d * shape.batch;
    const bool proj = shape.proj > 0;
    panels_h = arena.take<operand>(d * panels * gates * K::kPanel);
    panels_r = arena.take<operand>(proj ? d * unit_panels * proj_depth * K::kPanel : 0);
    panels_x = arena.take<operand>(a.d_input ? d * input_panels * gates * K::kPanel : 0);
    d_gates = arena.take<operand>(rows * gates);
    d_y = arena.take<operand>(proj ? rows * proj_depth : 0);
    hidden = arena.take<storage>(proj ? rows * shape.hidden : 0);
    zeros = arena.take<storage>(zero_width);
    carry = arena.take<acc>(states * width);
    d_c = arena.take<acc>(states * units);
    d_reset_h = arena.take<acc>(a.d_reset_h ? states * width : 0);
    d_reset_c = arena.take<acc>(a.d_reset_c ? states * units : 0);
    const int64_t partial = (shape.batch > kInputRows ? shape.batch : kInputRows) * K::kPanel;
    scratch = arena.take<acc>(plan.threads * partial) + share * partial;
    outer.lay_out(arena, gates, shape.input + 1 + recurrent, plan.threads, share);
    if (proj) projection.lay_out(arena, shape.proj, shape.hidden, plan.threads, share);
  }

  void pack(Share share) {
    const auto pack_all = [&](operand* to, int64_t per_direction, int64_t depth, int64_t padded, int64_t columns,
                              auto weight) {
      const Range range = share.of(shape.directions * per_direction);
      for (int64_t i = range.begin; i < range.end; ++i) {
        const auto* w = static_cast<const storage*>(weight(a.weights[i / per_direction]));
        pack_columns<K>(
            to + i * padded * K::kPanel, [&](int64_t k) { return w + k * columns; }, depth, columns,
            i % per_direction * K::kPanel);
      }
    };
    pack_all(panels_h, panels, gates, gates, recurrent, [](const Weights& w) { return w.hh; });
    if (shape.proj > 0)
      pack_all(panels_r, unit_panels, shape.proj, proj_depth, shape.hidden, [](const Weights& w) { return w.hr; });
    if (a.d_input) pack_all(panels_x, input_panels, gates, gates, shape.input, [](const Weights& w) { return w.ih; });
    const Range rows = share.of(shape.directions * shape.batch);
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      widen_state(carry + i * width, a.d_h_n, i, recurrent, width);
      widen_state(d_c + i * units, a.d_c_n, i, shape.hidden, units);
      if (a.d_reset_h) __builtin_memset(d_reset_h + i * width, 0, size_t(width) * sizeof(acc));
      if (a.d_reset_c) __builtin_memset(d_reset_c + i * units, 0, size_t(units) * sizeof(acc));
    }
    if (share.first == 0) __builtin_memset(zeros, 0, size_t(zero_width) * sizeof(storage));
  }

  const storage* state_row(const State& s, int64_t d, int64_t b) const {
    return s.data ? static_cast<const storage*>(s.data) + d * s.direction + b * s.batch : nullptr;
  }

  void widen_state(acc* to, const State& from, int64_t i, int64_t n, int64_t padded) const {
    const storage* row = state_row(from, i / shape.batch, i % shape.batch);
    for (int64_t u = 0; u < padded; u += K::kLanes) store(to + u, row && u < n ? K::load(row + u, n - u) : V{});
  }

  void steps(Range rows, Range own_panels, Range own_units, const Share* team) {
    // Scan position -1 is the state before the first step: only its gradient, where somebody wants it.
    const int64_t first = a.d_h_0 || a.rows.reset ? -1 : 0;
    for (int64_t s = shape.steps - 1; s >= first; --s) {
      for (int64_t i = own_panels.begin; i < own_panels.end; ++i) hidden_gradient(i / panels, i, rows, s);
      if (shape.proj > 0 && s >= 0) {
        if (team) team->meet();
        for (int64_t i = own_units.begin; i < own_units.end; ++i) project_back(i / unit_panels, i, rows, s);
      }
      if (team) team->meet();
    }
  }

  const operand* d_gates_row(int64_t d, int64_t row) const { return d_gates + (d * a.row_count + row) * gates; }

  // The gradient of h after scan position s for one panel of units, and all that follows from it.
  void hidden_gradient(int64_t d, int64_t i, Range rows, int64_t s) {
    const int64_t column = i % panels * K::kPanel;
    const bool last = s + 1 == shape.steps;
    const int64_t t = s < 0 ? -1 : index.step(s, d);
    const int64_t later = last ? -1 : index.step(s + 1, d);
    const int64_t from = later < 0 ? 0 : index.rows_at(later, rows);  // rows that have gate gradients to bring back
    const int64_t here = s < 0 ? rows.end - rows.begin : index.rows_at(t, rows);
    const operand* panel = panels_h + i * gates * K::kPanel;
    panel_product<K>(
        from, recurrent - column, 1, gates,
        [&](int, int64_t r) { return d_gates_row(d, index.row(later, rows.begin + r)); }, [&](int) { return panel; },
        scratch, [&](int64_t r, auto& v) { finish_row(v, d, s, t, later, rows.begin + r, r < here, column); });
    V nothing[kPanelVectors];
    for (int64_t r = from; r < here; ++r) {  // these rows' last step: nothing comes back to it
      for (V& v : nothing) v = V{};
      finish_row(nothing, d, s, t, -1, rows.begin + r, true, column);
    }
  }

  template <int kVectors>
  FUSEDLSTM_INLINE void finish_row(V (&d_h)[kVectors], int64_t d, int64_t s, int64_t t, int64_t later, int64_t b,
                                   bool exists, int64_t column) {
    const bool active = s >= 0 && exists && index.active(t, b);
    const bool was_reset = later >= 0 && index.reset(later, b);
    for (int q = 0; q < kVectors; ++q) {
      const int64_t u = column + q * K::kLanes;
      if (u >= recurrent) break;
      acc* c = carry + (d * shape.batch + b) * width + u;
      if (was_reset) {  // the step after began from the reset state: nothing flows back to here
        if (a.d_reset_h) add(d_reset_h + (d * shape.batch + b) * width + u, d_h[q]);
        d_h[q] = V{};
        if (shape.proj == 0) reset_cell(d, b, u);
      }
      d_h[q] += load<V>(c);
      store(c, active ? V{} : d_h[q]);
      if (s < 0 || !exists) continue;
      const int64_t row = index.row(t, b);
      if (active && a.d_output.data)
        d_h[q] += K::load(index.template data_row<storage>(a.d_output, t, b) + d * recurrent + u, recurrent - u);
      if (shape.proj > 0) {
        K::store_operand(d_y + (d * a.row_count + row) * proj_depth + u, active ? d_h[q] : V{}, proj_depth - u);
      } else {
        cell_row(d_h[q], d, s, t, b, row, active, u);
      }
    }
    if (was_reset && shape.proj > 0 && column == 0)
      for (int64_t u = 0; u < shape.hidden; u += K::kLanes) reset_cell(d, b, u);
  }

  FUSEDLSTM_INLINE void reset_cell(int64_t d, int64_t b, int64_t u) {
    acc* c = d_c + (d * shape.batch + b) * units + u;
    if (a.d_reset_c) add(d_reset_c + (d * shape.batch + b) * units + u, load<V>(c));
    store(c, V{});
  }

  // d_h before the projection, W_hr^T d_y, and the cell, for one panel of hidden units.
  void project_back(int64_t d, int64_t i, Range rows, int64_t s) {
    const int64_t t = index.step(s, d);
    const int64_t column = i % unit_panels * K::kPanel;
    panel_product<K>(
        index.rows_at(t, rows), shape.hidden - column, 1, proj_depth,
        [&](int, int64_t r) { return d_y + (d * a.row_count + index.row(t, rows.begin + r)) * proj_depth; },
        [&](int) { return panels_r + i * proj_depth * K::kPanel; }, scratch,
        [&](int64_t r, auto& v) {
          const int64_t b = rows.begin + r;
          for (int64_t u = column, q = 0; u < shape.hidden && q < int64_t(sizeof v / sizeof *v); ++q, u += K::kLanes)
            cell_row(v[q], d, s, t, b, index.row(t, b), index.active(t, b), u);
        });
  }

  // The cell's derivative for one vector of hidden units of one row.
  FUSEDLSTM_INLINE void cell_row(V d_h, int64_t d, int64_t s, int64_t t, int64_t b, int64_t row, bool active,
                                 int64_t u) {
    const int64_t n = shape.hidden - u;
    const int64_t saved = d * a.row_count + row;
    operand* to = d_gates + saved * gates + u;
    storage* hidden_row = hidden + saved * shape.hidden + u;
    if (!active) {
      for (int gate = 0; gate < kPanelVectors; ++gate) K::store_operand(to + gate * shape.hidden, V{}, n);
      if (shape.proj > 0) K::store(hidden_row, V{}, n);
      return;
    }
    const storage* y = static_cast<const storage*>(a.gates) + saved * gates + u;
    const V i = K::load(y, n), f = K::load(y + shape.hidden, n), g = K::load(y + 2 * shape.hidden, n),
            o = K::load(y + 3 * shape.hidden, n);
    const acc* cells = static_cast<const acc*>(a.cell_states) + d * a.row_count * shape.hidden + u;
    const V c = load_some<V>(cells + row * shape.hidden, n);
    V c_prev;
    const int64_t before = s > 0 ? index.step(s - 1, d) : -1;
    if (index.reset(t, b)) {
      const storage* reset = state_row(a.reset_c, d, b);
      c_prev = reset ? K::load(reset + u, n) : V{};
    } else if (before < 0 || !index.active(before, b)) {
      c_prev = K::load(state_row(a.c_0, d, b) + u, n);
    } else {
      c_prev = load_some<V>(cells + index.row(before, b) * shape.hidden, n);
    }
    acc* d_c_row = d_c + (d * shape.batch + b) * units + u;
    V d_cell = load<V>(d_c_row);
    if (a.d_cell_states) d_cell += load_some<V>(static_cast<const acc*>(a.d_cell_states) + saved * shape.hidden + u, n);
    const auto z = cell_backward<V, typename K::Math>(i, f, g, o, c, c_prev, d_h, d_cell);
    store(d_c_row, z.d_c_prev);
    K::store_operand(to, z.d_i, n);
    K::store_operand(to + shape.hidden, z.d_f, n);
    K::store_operand(to + 2 * shape.hidden, z.d_g, n);
    K::store_operand(to + 3 * shape.hidden, z.d_o, n);
    if (shape.proj > 0) K::store(hidden_row, o * K::Math::tanh(c), n);
  }

  void state_gradients(Share share) {
    const Range rows = share.of(shape.directions * shape.batch);
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      narrow_state(a.d_h_0, carry + i * width, i, recurrent);
      narrow_state(a.d_c_0, d_c + i * units, i, shape.hidden);
      narrow_state(a.d_reset_h, d_reset_h + i * width, i, recurrent);
      narrow_state(a.d_reset_c, d_reset_c + i * units, i, shape.hidden);
    }
  }

  void narrow_state(void* to, const acc* from, int64_t i, int64_t n) const {
    if (!to) return;
    for (int64_t u = 0; u < n; u += K::kLanes)
      K::store(static_cast<storage*>(to) + i * n + u, load<V>(from + u), n - u);
  }

  // d_input = sum over directions of d_gates W_ih, rows divided among the team.
  void input_gradient(Share share) {
    const Range all = share.of(a.row_count);
    for (int64_t begin = all.begin; begin < all.end; begin += kInputRows)  // a block of rows stays in the cache
      input_gradient_rows({begin, begin + kInputRows < all.end ? begin + kInputRows : all.end});
  }

  void input_gradient_rows(Range rows) {
    for (int64_t p = 0; p < input_panels; ++p)
      panel_product<K>(
          rows.end - rows.begin, shape.input - p * K::kPanel, int(shape.directions), gates,
          [&](int d, int64_t r) { return d_gates_row(d, rows.begin + r); },
          [&](int d) { return panels_x + (d * input_panels + p) * gates * K::kPanel; }, scratch,
          [&](int64_t r, auto& v) {
            storage* to = static_cast<storage*>(a.d_input) + (rows.begin + r) * shape.input;
            for (int64_t u = p * K::kPanel, q = 0; u < shape.input && q < int64_t(sizeof v / sizeof *v);
                 ++q, u += K::kLanes)
              K::store(to + u, v[q], shape.input - u);
          });
  }

  void weight_gradients(int64_t d, Share share) {
    const auto pointer = [](void* p) { return static_cast<storage*>(p); };
    const typename Outer<K>::Left lefts[] = {{shape.input, pointer(a.d_weight_ih[d]), pointer(a.d_bias[d])},
                                             {recurrent, pointer(a.d_weight_hh[d]), nullptr}};
    StepRows at(*this);
    outer.run(
        share, a.row_count, lefts,
        [&](int i, int64_t row) {
          at.go(row);
          if (!index.active(at.t, at.b)) return static_cast<const storage*>(zeros);  // padding may hold anything
          return i == 0 ? index.template data_row<storage>(a.input, at.t, at.b) : h_before(d, at.t, at.b);
        },
        [&](int64_t row) { return d_gates_row(d, row); }, gates);
    if (!a.d_weight_hr[d]) return;
    const typename Outer<K>::Left hidden_left[] = {{shape.hidden, pointer(a.d_weight_hr[d]), nullptr}};
    projection.run(
        share, a.row_count, hidden_left,
        [&](int, int64_t row) { return hidden + (d * a.row_count + row) * shape.hidden; },
        [&](int64_t row) { return d_y + (d * a.row_count + row) * proj_depth; }, shape.proj);
  }

  // h before step t.
  const storage* h_before(int64_t d, int64_t t, int64_t b) const {
    if (index.reset(t, b)) return a.reset_h.data ? state_row(a.reset_h, d, b) : zeros;
    const int64_t before = d == 0 ? t - 1 : t + 1;
    if (before < 0 || before >= shape.steps || !index.active(before, b)) return state_row(a.h_0, d, b);
    return static_cast<const storage*>(a.output) + (index.row(before, b) * shape.directions + d) * recurrent;
  }

  // Finds (t, b) of a row; cheap for rows visited in order.
  struct StepRows {
    explicit StepRows(const Backward& o) : o(o) {}
    const Backward& o;
    int64_t t = 0, b = 0;
    void go(int64_t row) {
      if (!o.a.rows.offsets) {
        t = row / o.shape.batch, b = row % o.shape.batch;
        return;
      }
      if (row < o.a.rows.offsets[t]) t = 0;
      while (row >= o.a.rows.offsets[t + 1]) ++t;
      b = row - o.a.rows.offsets[t];
    }
  };
};

}  // namespace fusedlstm::cpu
