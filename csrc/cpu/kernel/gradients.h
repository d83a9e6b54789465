// The gradients of a layer's input and weights, from the gate gradients of its time steps.
//
// They are products over rows, made chunk by chunk of time steps as the recurrence leaves them. Rows that did not run
// take no part: what padding holds is never read.
#pragma once

#include "cpu/division.h"
#include "outer.h"
#include "pack.h"
#include "row_index.h"
#include "transposed.h"

namespace fusedlstm::cpu {

inline constexpr int kInputRows = 192;  // of one block of the input gradient

// Time steps whose gate gradients become gradients of weights together: enough rows for one block of the products over
// rows; where there are no more in all, one chunk has them (outer.h).
constexpr int64_t steps_of_gradients(const Plan& plan, const Shape& shape) {
  const int64_t rows = rows_of_group(plan, shape);
  const int64_t n = rows > 0 ? (kOuterDepth + rows - 1) / rows : 1;
  return n < shape.steps ? n : shape.steps;
}

// What the backward recurrence leaves of the last `steps` scan positions.
//
// A row of gate gradients has those of both parts of the gates' sums. They differ in the gates that are apart, the last
// ones; those of the others are there once, for both:
//
//     apart, from input | joined | apart, from hidden
//
// So the part from hidden has the gates in the order of the weights, and that from input begins with those that are
// apart. What pads the latter for pairs is whatever follows; it meets weights of zero.
template <class K>
struct Ring {
  using operand = typename K::operand;
  using storage = typename K::storage;

  // gates_apart: how many gates have two gradients.
  Ring(const Shape& shape, int64_t steps, int64_t gates_apart)
      : shape(shape),
        steps(steps),
        apart(gates_apart * shape.hidden),
        joined(shape.gates * shape.hidden - apart),
        gates_depth(round_up(shape.gates * shape.hidden, K::kDepth)),
        gates_width(odd_lines(apart + gates_depth)),
        proj_depth(round_up(shape.proj, K::kDepth)) {}

  const Shape& shape;
  const int64_t steps;
  const int64_t apart, joined;  // sums of the gates that are, in each part
  // Elements of one part of a row of gate gradients, padded, and from one row to the next; those of a row of d_y,
  // padded.
  const int64_t gates_depth, gates_width, proj_depth;

  void lay_out(Arena& arena) {
    const int64_t rows = shape.directions * steps * shape.batch;
    const bool proj = shape.proj > 0;
    gate_rows = arena.take<operand>(rows * gates_width);
    d_y_rows = arena.take<operand>(proj ? rows * proj_depth : 0);
    hidden_rows = arena.take<storage>(proj ? rows * shape.hidden : 0);
  }
  // Of direction d, scan position s and batch row b: the gradients of the two parts of the gates' sums; with a
  // projection also the gradient of its result, and its operand.
  operand* d_from_input(int64_t d, int64_t s, int64_t b) const { return gate_rows + row(d, s, b) * gates_width; }
  operand* d_from_hidden(int64_t d, int64_t s, int64_t b) const { return d_from_input(d, s, b) + apart; }
  operand* d_y(int64_t d, int64_t s, int64_t b) const { return d_y_rows + row(d, s, b) * proj_depth; }
  storage* hidden(int64_t d, int64_t s, int64_t b) const { return hidden_rows + row(d, s, b) * shape.hidden; }

 private:
  // At least n elements, an odd number of cache lines: products over rows go down columns, and rows a power of two
  // apart would put each other out of the cache.
  static constexpr int64_t odd_lines(int64_t n) {
    constexpr int64_t kLine = 64 / sizeof(operand);
    return (round_up(n, kLine) / kLine | 1) * kLine;
  }

  operand *gate_rows, *d_y_rows;
  storage* hidden_rows;
  int64_t row(int64_t d, int64_t s, int64_t b) const { return (d * steps + s % steps) * shape.batch + b; }
};

// One for all cells.
template <class K>
class Gradients {
 public:
  using V = typename K::V;
  using acc = typename K::acc;
  using operand = typename K::operand;
  using storage = typename K::storage;

  FUSEDLSTM_NOINLINE Gradients(const BackwardArgs& args, const Plan& plan, const RowIndex& index, const Ring<K>& ring)
      : a(args),
        shape(args.shape),
        plan(plan),
        index(index),
        ring(ring),
        gates(shape.gates * shape.hidden),
        recurrent(shape.recurrent()),
        groups(row_groups(plan, shape)),
        rows(shape.steps * rows_of_group(plan, shape)),
        weight_ih(shape.directions, gates, shape.input, rows < kInputRows ? rows : kInputRows,
                  Transposed<K>::reading_of(plan, groups == 1 && rows <= kInputRows), ring.joined),
        weights(ring.joined, ring.apart, {shape.input, recurrent}, {of_weights(0), of_weights(1)}, shape.directions,
                groups, rows),
        projection(shape.proj, 0, {shape.hidden, 0}, {of_projection(0), of_projection(1)}, shape.directions, groups,
                   rows) {}

  FUSEDLSTM_NOINLINE void lay_out(Arena& arena, int64_t share) {
    if (a.d_input) weight_ih.lay_out(arena, plan.threads, share);
    parts = arena.take<acc>(a.d_input && shape.directions == 2 ? 2 * a.row_count * shape.input : 0);
    zeros = arena.take<storage>(recurrent);
    weights.lay_out(arena, plan.threads, share);
    projection.lay_out(arena, plan.threads, share);
  }

  void pack(const Share& share) {
    if (a.d_input) weight_ih.prepare(share, a.weights, &Weights::ih);
    if (share.first == 0) __builtin_memset(zeros, 0, size_t(recurrent) * sizeof(storage));
  }

  // Adds the rows of the scan positions `steps` of a task; they are still in the ring. The `first` call of a task
  // starts its sums. Where another layer waits for the input's gradients, add_input has made them.
  FUSEDLSTM_NOINLINE void add(const Task& task, Range steps, bool first) {
    if (!a.reported) clear_input_gradients(task, steps);
    for (int64_t d = task.directions.begin; d < task.directions.end; ++d) {
      bool starts = first;
      for_each_block(task, d, steps, starts, [&](Rows& block) {
        if (!a.reported) input_gradient(task, d, block);
        weights.accumulate(d, task.group, own(task, weights.tile_count), block.weights, starts);
        projection.accumulate(d, task.group, own(task, projection.tile_count), block.projection, starts);
        starts = false;
      });
    }
  }

  // The input's gradients alone.
  FUSEDLSTM_NOINLINE void add_input(const Task& task, Range steps) {
    clear_input_gradients(task, steps);
    for (int64_t d = task.directions.begin; d < task.directions.end; ++d)
      for_each_block(task, d, steps, false, [&](Rows& block) { input_gradient(task, d, block); });
  }

  // h before step t.
  const storage* h_before(int64_t d, int64_t t, int64_t b) const {
    if (index.reset(t, b)) return a.reset_state[0].data ? state_row<storage>(a.reset_state[0], d, b) : zeros;
    const int64_t before = d == 0 ? t - 1 : t + 1;
    if (before < 0 || before >= shape.steps || !index.active(before, b)) return state_row<storage>(a.initial[0], d, b);
    return static_cast<const storage*>(a.output) + (index.row(before, b) * shape.directions + d) * recurrent;
  }

  // The same as it entered the product.
  const storage* entered(int64_t d, int64_t t, int64_t b) const {
    return a.entered ? static_cast<const storage*>(a.entered) + index.row(t, b) * recurrent : h_before(d, t, b);
  }

  // Completes and writes all results, after everybody's last `add`.
  FUSEDLSTM_NOINLINE void finish(const Share& share) {
    if (a.d_input && shape.directions == 2) add_directions(share);
    for (int64_t d = 0; d < shape.directions; ++d) {
      weights.write(d, share.of(weights.tile_count));
      projection.write(d, share.of(projection.tile_count));
    }
  }

 private:
  const BackwardArgs& a;
  const Shape& shape;
  const Plan& plan;
  const RowIndex& index;
  const Ring<K>& ring;
  const int64_t gates, recurrent;
  const int64_t groups, rows;  // groups of batch rows in a direction, each with sums of its own; rows of a group
  Transposed<K> weight_ih;
  Outer<K> weights;     // gradients of the gates' sums, from input by input, from hidden by h before the step
  Outer<K> projection;  // d_y by the cell's h
  // Shared by the team.
  acc* parts;      // d_input of each of two directions, [2][N][I]
  storage* zeros;  // a row of h

  struct Rows {
    typename Outer<K>::Block weights, projection;
    int64_t row[kOuterDepth];

    void push(const Gradients& o, int64_t d, int64_t s, int64_t t, int64_t b) {
      const int64_t k = weights.depth++;
      row[k] = o.index.row(t, b);
      weights.left[k] = o.ring.d_from_input(d, s, b);
      weights.right[0][k] = o.index.template data_row<storage>(o.a.input, t, b);
      weights.right[1][k] = o.entered(d, t, b);
      if (o.shape.proj == 0) return;
      projection.depth = k + 1;
      projection.left[k] = o.ring.d_y(d, s, b);
      projection.right[0][k] = o.ring.hidden(d, s, b);
    }
  };

  // Runs body(block) for the rows of some scan positions that run, as many at once as fit; at least once if `always`.
  template <class Body>
  FUSEDLSTM_INLINE void for_each_block(const Task& task, int64_t d, Range steps, bool always, Body body) const {
    Rows block;
    for (int64_t s = steps.begin; s < steps.end; ++s) {
      const int64_t t = index.step(s, d), end = task.rows.begin + index.rows_at(t, task.rows);
      for (int64_t b = task.rows.begin; b < end; ++b) {
        if (!index.active(t, b)) continue;
        if (block.weights.depth == kOuterDepth) {
          body(block);
          always = false;
          block.weights.depth = block.projection.depth = 0;
        }
        block.push(*this, d, s, t, b);
      }
    }
    if (always || block.weights.depth > 0) body(block);
  }

  static storage* pointer(void* p) { return static_cast<storage*>(p); }
  typename Outer<K>::Result of_weights(int d) const {
    return {{pointer(a.d_weight_ih[d]), pointer(a.d_weight_hh[d]), pointer(a.d_bias_ih[d]), pointer(a.d_bias_hh[d])}};
  }
  typename Outer<K>::Result of_projection(int d) const { return {{pointer(a.d_weight_hr[d])}}; }
  static Range own(const Task& task, int64_t n) { return task.team ? task.team->of(n) : Range{0, n}; }
  // Whole tiles: what rows are multiplied together decides the last bit, and must not depend on who has which share.
  static Range own_rows(const Task& task, int64_t n) {
    const int64_t tiles = tiles_of<K::kTileRows>(n);
    return tiles == 0 ? Range{0, 0} : parts_of(n, own(task, tiles), tiles);
  }

  // d_input = d_from_input W_ih for the rows of a block. A team divides the rows; a few that meet the whole weight only
  // here, the columns.
  FUSEDLSTM_NOINLINE void input_gradient(const Task& task, int64_t d, Rows& block) {
    if (!a.d_input) return;
    int64_t depth = block.weights.depth;
    if (depth == 1 && rows > 1) {  // twice: one alone is summed otherwise, and blocks must not decide the last bit
      block.weights.left[depth] = block.weights.left[0];
      block.row[depth++] = block.row[0];
    }
    const bool by_rows = weight_ih.reading == Transposed<K>::Reading::kPanels;
    const Range all = by_rows ? own_rows(task, depth) : Range{0, depth};
    const Range panels = by_rows ? Range{0, weight_ih.panels} : own(task, weight_ih.panels);
    for_each_tile<kInputRows>(all.end - all.begin, [&](int64_t first, int64_t count) {
      const int64_t begin = all.begin + first;
      weight_ih.multiply(d, panels, Order::kUp, count, {.each = block.weights.left + begin},
                         [&](int64_t r, const acc* sums, int64_t column) {
                           for (int64_t i = 0; i < K::kPanel && column + i < shape.input; i += K::kLanes)
                             store_input_gradient(d, block.row[begin + r], column + i, load<V>(sums + i));
                         });
    });
  }

  // Zeros for the rows that do not run.
  void clear_input_gradients(const Task& task, Range steps) {
    if (!a.d_input || !a.rows.lengths || (task.team && task.team->first > 0)) return;
    for (int64_t d = task.directions.begin; d < task.directions.end; ++d)
      for (int64_t s = steps.begin; s < steps.end; ++s) {
        const int64_t t = index.step(s, d), end = task.rows.begin + index.rows_at(t, task.rows);
        for (int64_t b = task.rows.begin; b < end; ++b) {
          if (index.active(t, b)) continue;
          for (int64_t u = 0; u < shape.input; u += K::kLanes) store_input_gradient(d, index.row(t, b), u, V{});
        }
      }
  }

  FUSEDLSTM_INLINE void store_input_gradient(int64_t d, int64_t row, int64_t u, V v) {
    if (shape.directions == 1) return K::store(pointer(a.d_input) + row * shape.input + u, v, shape.input - u);
    store_some(parts + (d * a.row_count + row) * shape.input + u, v, shape.input - u);
  }

  void add_directions(const Share& share) {
    const Range all = share.of(a.row_count * shape.input);
    for (int64_t i = all.begin; i < all.end; i += K::kLanes) {
      const int64_t n = all.end - i;
      const acc* part = parts + i;
      K::store(pointer(a.d_input) + i, load_some<V>(part, n) + load_some<V>(part + a.row_count * shape.input, n), n);
    }
  }
};

}  // namespace fusedlstm::cpu
