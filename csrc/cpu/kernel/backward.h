// The backward recurrence of one layer.
//
// Going back one time step, the gradient of h is W_hh^T times the gate gradients of the step after it, plus what the
// output received. A tile of it (batch rows by four vectors of hidden units) is turned into gate gradients by the
// cell's derivative row by row, while it is in the innermost cache. The gate gradients of a chunk of steps are both the
// operand of the next tile and the material of the products for the input and the weights (gradients.h), which follow
// while the chunk is in the cache.
//
// `carry` is the gradient of h that skips products: that of the last h until a row's last step, through rows that do
// not run, and what a cell that takes h itself has for it.
#pragma once

#include "cells/cell.h"
#include "gradients.h"

namespace fusedlstm::cpu {

template <class K, class Cell>
class Backward {
 public:
  using V = typename K::V;
  using acc = typename K::acc;
  using operand = typename K::operand;
  using storage = typename K::storage;
  static constexpr CellSizes kSizes = Cell::kSizes;

  Backward(const BackwardArgs& args, const Cell& cell, const Plan& plan)
      : a(args),
        cell(cell),
        shape(args.shape),
        plan(plan),
        index(args.shape, args.rows),
        recurrent(shape.recurrent()),
        width(round_up(recurrent, K::kPanel)),
        units(round_up(shape.hidden, K::kPanel)),
        weight_hh(shape.directions, kSizes.gates * shape.hidden, recurrent, rows_of_group(plan, shape), reading()),
        weight_hr(shape.directions, shape.proj, shape.hidden, rows_of_group(plan, shape), reading()),
        chunk(steps_of_gradients(plan, shape)),
        ring(shape, chunk + 1, kSizes.apart()),
        gradients(args, plan, index, ring) {}

  FUSEDLSTM_NOINLINE int64_t workspace_bytes() {
    Arena arena{nullptr};
    lay_out(arena, 0);
    return arena.used;
  }

  void run(Share& share, char* memory) {
    Arena arena{memory};
    lay_out(arena, share.first);
    pack(share);
    share.meet();
    for_each_task(plan, shape, share, [&](const Task& task) { steps(task); });
    share.meet();
    state_gradients(share);
    gradients.finish(share);
  }

 private:
  const BackwardArgs& a;
  const Cell cell;
  const Shape& shape;
  const Plan& plan;
  const RowIndex index;
  const int64_t recurrent, width, units;
  Transposed<K> weight_hh, weight_hr;
  const int64_t chunk;  // time steps whose gate gradients are kept; one more is what the recurrence looks back to
  Ring<K> ring;
  Gradients<K> gradients;
  // Shared by the team.
  acc *carry, *d_reset_h;                                                                // [D][B][width]
  acc *d_carried[at_least_one(kSizes.carried)], *d_reset[at_least_one(kSizes.carried)];  // [D][B][units]

  // The code is left out of cells that never do.
  bool projects() const { return kSizes.projects && shape.proj > 0; }

  // Into how many parts a chunk of so many steps is divided for the layers beside this one. In tile registers it
  // decides a row's last bit which others lie equally far from it (bfloat16_tiles.h): there a chunk is one part.
  int64_t parts_of_chunk(int64_t steps) const {
    if ((!a.awaited && !a.reported) || kHasTiles<typename K::Isa>) return 1;
    const int64_t n = awaited_steps(shape.steps, shape.batch);
    return (steps + n - 1) / n;
  }

  // In a single step each weight is met by one product; but groups of rows would each pack it.
  typename Transposed<K>::Reading reading() const {
    return Transposed<K>::reading_of(plan, shape.steps == 1 && row_groups(plan, shape) == 1);
  }

  // Whether gradients flow through W_hh: not in a single step from a state without a gradient.
  bool recurs() const { return shape.steps > 1 || a.d_initial[0] || a.rows.reset; }

  void lay_out(Arena& arena, int64_t share) {
    const int64_t d = shape.directions, states = d * shape.batch;
    if (recurs()) weight_hh.lay_out(arena, plan.threads, share);
    if (projects()) weight_hr.lay_out(arena, plan.threads, share);
    carry = arena.take<acc>(states * width);
    d_reset_h = arena.take<acc>(a.d_reset_state[0] ? states * width : 0);
    for (int k = 0; k < kSizes.carried; ++k) {
      d_carried[k] = arena.take<acc>(states * units);
      d_reset[k] = arena.take<acc>(a.d_reset_state[1 + k] ? states * units : 0);
    }
    ring.lay_out(arena);
    gradients.lay_out(arena, share);
  }

  void pack(const Share& share) {
    if (recurs()) weight_hh.prepare(share, a.weights, &Weights::hh);
    if (projects()) weight_hr.prepare(share, a.weights, &Weights::hr);
    gradients.pack(share);
    const Range rows = share.of(shape.directions * shape.batch);
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      widen_state<K>(carry + i * width, a.d_last[0], i / shape.batch, i % shape.batch, recurrent, width);
      if (a.d_reset_state[0]) __builtin_memset(d_reset_h + i * width, 0, size_t(width) * sizeof(acc));
      for (int k = 0; k < kSizes.carried; ++k) {
        widen_state<K>(d_carried[k] + i * units, a.d_last[1 + k], i / shape.batch, i % shape.batch, shape.hidden,
                       units);
        if (a.d_reset_state[1 + k]) __builtin_memset(d_reset[k] + i * units, 0, size_t(units) * sizeof(acc));
      }
    }
  }

  void steps(const Task& task) {
    int64_t end = shape.steps;
    do {
      const int64_t begin = end > chunk ? end - chunk : 0, count = parts_of_chunk(end - begin);
      for (int64_t i = count; i-- > 0;) {
        const auto [first, last] = part(end - begin, i, count);
        if (a.awaited) a.awaited->wait_for(shape.steps - begin - first);
        for (int64_t s = begin + last; s-- > begin + first;) step(task, s);
        if (!a.reported) continue;
        gradients.add_input(task, {begin + first, begin + last});
        a.reported->reach(shape.steps - begin - first);
      }
      gradients.add(task, {begin, end}, end == shape.steps);
      end = begin;
    } while (end > 0);
    // Scan position -1 is the state before the first step: only its gradient, where somebody wants it.
    if (a.d_initial[0] || a.rows.reset) step(task, -1);
  }

  void step(const Task& task, int64_t s) {
    for_each_direction(task.of(weight_hh.panels), weight_hh.panels,
                       [&](int64_t d, Range panels) { hidden_gradient(d, panels, task.rows, s); });
    if (projects() && s >= 0) {
      task.meet();
      for_each_direction(task.of(weight_hr.panels), weight_hr.panels,
                         [&](int64_t d, Range panels) { project_back(d, panels, task.rows, s); });
    }
    task.meet();
  }

  // The gradient of h after scan position s for some panels of units, and all that follows from it.
  void hidden_gradient(int64_t d, Range panels, Range rows, int64_t s) {
    const bool last = s + 1 == shape.steps;
    const int64_t t = s < 0 ? -1 : index.step(s, d);
    const int64_t later = last ? -1 : index.step(s + 1, d);
    const int64_t from = later < 0 ? 0 : index.rows_at(later, rows);  // rows that have gate gradients to bring back
    const int64_t here = s < 0 ? rows.end - rows.begin : index.rows_at(t, rows);
    const bool is_plain = s > 0 && !last && !a.rows.lengths && !a.rows.reset && !projects();
    const Lines lines = is_plain ? Lines(*this, d, s, t, rows.begin) : Lines{};
    weight_hh.multiply(d, panels, order_of(s), from, {ring.d_from_hidden(d, s + 1, rows.begin), ring.gates_width},
                       [&](int64_t r, const acc* d_h, int64_t column) {
                         int64_t whole = 0;
                         if (is_plain) whole = finish_plain(d_h, lines, r, column);
                         if (whole < K::kPanel && column + whole < recurrent)
                           finish_row(d_h + whole, d, s, t, later, rows.begin + r, r < here, column + whole);
                       });
    const acc nothing[K::kPanel] = {};
    for (int64_t p = panels.begin; p < panels.end; ++p)
      for (int64_t r = from; r < here; ++r)  // these rows' last step: nothing comes back to it
        finish_row(nothing, d, s, t, -1, rows.begin + r, true, p * K::kPanel);
  }

  static Order order_of(int64_t s) { return s & 1 ? Order::kDown : Order::kUp; }

  // Where the rows of a step are, from one row on: worked out once. Behind each store of a result the compiler would
  // read again what they follow from.
  struct Lines {
    acc *carry, *d_carried;  // of that row, as all of these
    const acc *carried, *carried_before, *d_carried_too;
    const storage *d_output, *saved, *h, *h_before;  // d_output, d_carried_too: null where there is none
    operand *from_input, *from_hidden;
    int64_t width, units, d_output_apart, hidden, h_apart, gates_width, states_apart;
    int64_t rows_back, d_output_back;  // to the scan position before: rows of what forward saved, elements of d_output
    int64_t panel_on;                  // units to the next panel

    Lines() = default;
    FUSEDLSTM_INLINE Lines(const Backward& o, int64_t d, int64_t s, int64_t t, int64_t b) {
      const int64_t row = o.index.row(t, b), before = o.index.row(o.index.step(s - 1, d), b);
      const int64_t state = d * o.shape.batch + b, directions = o.shape.directions;
      const auto of_output = [&](int64_t at) {
        return static_cast<const storage*>(o.a.output) + (at * directions + d) * o.recurrent;
      };
      carry = o.carry + state * o.width;
      carried = static_cast<const acc*>(o.a.carried) + o.carried_at(0, d, row, 0);
      carried_before = static_cast<const acc*>(o.a.carried) + o.carried_at(0, d, before, 0);
      d_carried_too = o.a.d_carried ? static_cast<const acc*>(o.a.d_carried) + o.carried_at(0, d, row, 0) : nullptr;
      d_output = o.a.d_output.data ? o.index.template data_row<storage>(o.a.d_output, t, b) + d * o.recurrent : nullptr;
      saved = static_cast<const storage*>(o.a.saved) + (d * o.a.row_count + row) * kSizes.saved * o.shape.hidden;
      rows_back = before - row;
      d_output_back = rows_back > 0 ? o.a.d_output.step : -o.a.d_output.step;
      panel_on = order_of(s) == Order::kUp ? K::kPanel : -K::kPanel;
      h = of_output(row);
      h_before = of_output(before);
      from_input = o.ring.d_from_input(d, s, b);
      from_hidden = o.ring.d_from_hidden(d, s, b);
      width = o.width;
      units = o.units;
      d_output_apart = o.a.d_output.batch;
      hidden = o.shape.hidden;
      h_apart = directions * o.recurrent;
      gates_width = o.ring.gates_width;
      if constexpr (kSizes.carried > 0) {
        d_carried = o.d_carried[0] + state * o.units;
        states_apart = o.d_carried[kSizes.carried - 1] - o.d_carried[0];
      }
    }
  };

  // Of a row that runs, as all do, in a step between others, without resets and projection: its whole vectors in one
  // panel of units; with half the instructions. Returns for how many units.
  FUSEDLSTM_INLINE int64_t finish_plain(const acc* sums, const Lines& lines, int64_t r, int64_t column) const {
    static_assert(kSizes.carried <= 2);
    // What comes from memory is on its way for the next panel, or for the step before, which begins with the panel that
    // this one ends with: the product of a panel takes long enough, and what it brings is little enough to stay.
    const bool is_last = lines.panel_on > 0 ? column + K::kPanel >= lines.hidden : column == 0;
    const int64_t rows_on = is_last ? lines.rows_back : 0, units_on = is_last ? 0 : lines.panel_on;
    int64_t i = 0;
    for (; i < K::kPanel && column + i + K::kLanes <= lines.hidden; i += K::kLanes) {
      const int64_t u = column + i;
      V d_h = load<V>(sums + i);
      if constexpr (kSizes.takes_h) d_h += load<V>(lines.carry + r * lines.width + u);
      if (lines.d_output) {
        const storage* d_output = lines.d_output + r * lines.d_output_apart + u;
        __builtin_prefetch(d_output + (is_last ? lines.d_output_back : 0) + units_on);
        d_h += K::load(d_output);
      }
      Known<V, kSizes> known{};
      for (int k = 0; k < kSizes.saved; ++k) {
        const storage* saved = lines.saved + (r * kSizes.saved + k) * lines.hidden + u;
        __builtin_prefetch(saved + rows_on * kSizes.saved * lines.hidden + units_on);
        known.saved[k] = K::load(saved);
      }
      if constexpr (kSizes.takes_h) known.h_before = K::load(lines.h_before + r * lines.h_apart + u);
      if constexpr (kSizes.reads_h) known.h = K::load(lines.h + r * lines.h_apart + u);
      V d_states[at_least_one(kSizes.carried)] = {};
      for (int k = 0; k < kSizes.carried; ++k) {
        const int64_t at = (r * kSizes.carried + k) * lines.hidden + u;
        __builtin_prefetch(lines.carried_before + at + rows_on * kSizes.carried * lines.hidden + units_on);
        known.carried[k] = load<V>(lines.carried + at);
        known.carried_before[k] = load<V>(lines.carried_before + at);
        d_states[k] = load<V>(lines.d_carried + k * lines.states_apart + r * lines.units + u);
        if (lines.d_carried_too) d_states[k] += load<V>(lines.d_carried_too + at);
      }
      const auto z = cell.backward(cell.template slopes<typename K::Math>(known), d_h, d_states);
      for (int k = 0; k < kSizes.carried; ++k)
        cpu::store(lines.d_carried + k * lines.states_apart + r * lines.units + u, z.carried_before[k]);
      if constexpr (kSizes.takes_h) cpu::store(lines.carry + r * lines.width + u, z.h_before);
      const int64_t at = r * lines.gates_width + u;
      for (int gate = 0; gate < kSizes.gates; ++gate)
        K::store_operand(lines.from_hidden + at + gate * lines.hidden, z.from_hidden[gate]);
      for (int k = 0; k < kSizes.apart(); ++k)
        K::store_operand(lines.from_input + at + k * lines.hidden, z.from_input[kSizes.joined + k]);
    }
    return i;
  }

  // sums: what comes back through W_hh, for one panel of units of one row.
  FUSEDLSTM_NOINLINE void finish_row(const acc* sums, int64_t d, int64_t s, int64_t t, int64_t later, int64_t b,
                                     bool exists, int64_t column) {
    const bool active = s >= 0 && exists && index.active(t, b);
    const bool was_reset = later >= 0 && index.reset(later, b);
    for (int64_t i = 0; i < K::kPanel && column + i < recurrent; i += K::kLanes) {
      const int64_t u = column + i;
      V d_h = load<V>(sums + i);
      acc* c = carry + (d * shape.batch + b) * width + u;
      if (was_reset) {  // the step after began from the reset state: nothing flows back to here
        if constexpr (kSizes.takes_h) {
          d_h += load<V>(c);
          store(c, V{});
        }
        if (a.d_reset_state[0]) add(d_reset_h + (d * shape.batch + b) * width + u, d_h);
        d_h = V{};
        if (!projects()) reset_carried(d, b, u);
      }
      d_h += load<V>(c);
      store(c, active ? V{} : d_h);
      if (s < 0 || !exists) continue;
      const int64_t row = index.row(t, b);
      if (active && a.d_output.data)
        d_h += K::load(index.template data_row<storage>(a.d_output, t, b) + d * recurrent + u, recurrent - u);
      if (projects()) {
        K::store_operand(ring.d_y(d, s, b) + u, active ? d_h : V{}, ring.proj_depth - u);
      } else {
        cell_row(d_h, d, s, t, b, row, active, u);
      }
    }
    if (was_reset && projects() && column == 0)
      for (int64_t u = 0; u < shape.hidden; u += K::kLanes) reset_carried(d, b, u);
  }

  FUSEDLSTM_INLINE void reset_carried(int64_t d, int64_t b, int64_t u) {
    for (int k = 0; k < kSizes.carried; ++k) {
      acc* c = d_carried[k] + (d * shape.batch + b) * units + u;
      if (a.d_reset_state[1 + k]) add(d_reset[k] + (d * shape.batch + b) * units + u, load<V>(c));
      store(c, V{});
    }
  }

  // d_h before the projection, W_hr^T d_y, and the cell, for some panels of hidden units.
  void project_back(int64_t d, Range panels, Range rows, int64_t s) {
    const int64_t t = index.step(s, d);
    weight_hr.multiply(d, panels, order_of(s), index.rows_at(t, rows), {ring.d_y(d, s, rows.begin), ring.proj_depth},
                       [&](int64_t r, const acc* d_m, int64_t column) {
                         const int64_t b = rows.begin + r;
                         for (int64_t i = 0; i < K::kPanel && column + i < shape.hidden; i += K::kLanes)
                           cell_row(load<V>(d_m + i), d, s, t, b, index.row(t, b), index.active(t, b), column + i);
                       });
  }

  // The cell's derivative for one vector of hidden units of one row.
  FUSEDLSTM_INLINE void cell_row(V d_h, int64_t d, int64_t s, int64_t t, int64_t b, int64_t row, bool active,
                                 int64_t u) {
    const int64_t n = shape.hidden - u;
    operand *from_input = ring.d_from_input(d, s, b) + u, *from_hidden = ring.d_from_hidden(d, s, b) + u;
    const auto store_gates = [&](const CellGradients<V, kSizes>& z) FUSEDLSTM_LAMBDA {
      for (int gate = 0; gate < kSizes.gates; ++gate) {
        // With the last gate go the zeros that pad the row: what lies beyond the units is zero.
        const int64_t before = gate * shape.hidden, padded = ring.gates_depth - before - u;
        K::store_operand(from_hidden + before, z.from_hidden[gate], gate + 1 < kSizes.gates ? n : padded);
      }
      for (int k = 0; k < kSizes.apart(); ++k)
        K::store_operand(from_input + k * shape.hidden, z.from_input[kSizes.joined + k], n);
    };
    if (!active) return store_gates(CellGradients<V, kSizes>{});
    const Known<V, kSizes> known = known_of(d, s, t, b, row, u);
    V d_states[at_least_one(kSizes.carried)] = {};
    for (int k = 0; k < kSizes.carried; ++k) {
      d_states[k] = load<V>(d_carried[k] + (d * shape.batch + b) * units + u);
      if (a.d_carried) d_states[k] += load_some<V>(static_cast<const acc*>(a.d_carried) + carried_at(k, d, row, u), n);
    }
    const auto z = cell.backward(cell.template slopes<typename K::Math>(known), d_h, d_states);
    for (int k = 0; k < kSizes.carried; ++k)
      store(d_carried[k] + (d * shape.batch + b) * units + u, z.carried_before[k]);
    if constexpr (kSizes.takes_h) add(carry + (d * shape.batch + b) * width + u, z.h_before);
    store_gates(z);
    if constexpr (kSizes.projects)
      if (projects())
        K::store(ring.hidden(d, s, b) + u, cell.template hidden<typename K::Math>(known.saved, known.carried), n);
  }

  int64_t carried_at(int k, int64_t d, int64_t row, int64_t u) const {
    return ((d * a.row_count + row) * kSizes.carried + k) * shape.hidden + u;
  }

  FUSEDLSTM_INLINE Known<V, kSizes> known_of(int64_t d, int64_t s, int64_t t, int64_t b, int64_t row, int64_t u) const {
    const int64_t n = shape.hidden - u, saved_row = kSizes.saved * shape.hidden;
    const storage* saved = static_cast<const storage*>(a.saved) + (d * a.row_count + row) * saved_row + u;
    const acc* carried = static_cast<const acc*>(a.carried);
    Known<V, kSizes> known{};
    // The rows of the next tile are on their way from memory while this one is finished.
    for (int k = 0; k < kSizes.saved; ++k) __builtin_prefetch(saved + K::kTileRows * saved_row + k * shape.hidden);
    for (int k = 0; k < kSizes.carried; ++k) __builtin_prefetch(carried + carried_at(k, d, row + K::kTileRows, u));
    for (int k = 0; k < kSizes.saved; ++k) known.saved[k] = K::load(saved + k * shape.hidden, n);
    if constexpr (kSizes.takes_h) known.h_before = K::load(gradients.h_before(d, t, b) + u, n);
    if constexpr (kSizes.reads_h)
      known.h = K::load(static_cast<const storage*>(a.output) + (row * shape.directions + d) * recurrent + u, n);
    const int64_t before = s > 0 ? index.step(s - 1, d) : -1;
    for (int k = 0; k < kSizes.carried; ++k) {
      known.carried[k] = load_some<V>(carried + carried_at(k, d, row, u), n);
      if (index.reset(t, b)) {
        const storage* reset = state_row<storage>(a.reset_state[1 + k], d, b);
        known.carried_before[k] = reset ? K::load(reset + u, n) : V{};
      } else if (before < 0 || !index.active(before, b)) {
        known.carried_before[k] = K::load(state_row<storage>(a.initial[1 + k], d, b) + u, n);
      } else {
        known.carried_before[k] = load_some<V>(carried + carried_at(k, d, index.row(before, b), u), n);
      }
    }
    return known;
  }

  void state_gradients(const Share& share) {
    const Range rows = share.of(shape.directions * shape.batch);
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      narrow_state<K>(a.d_initial[0], carry + i * width, i, recurrent);
      narrow_state<K>(a.d_reset_state[0], d_reset_h + i * width, i, recurrent);
      for (int k = 0; k < kSizes.carried; ++k) {
        narrow_state<K>(a.d_initial[1 + k], d_carried[k] + i * units, i, shape.hidden);
        narrow_state<K>(a.d_reset_state[1 + k], d_reset[k] + i * units, i, shape.hidden);
      }
    }
  }
};

}  // namespace fusedlstm::cpu
