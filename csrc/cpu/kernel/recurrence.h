// The loop of every forward recurrence of one layer: chunks of time steps, steps, blocks of hidden units.
//
// Each time step of a block of hidden units and a tile of batch rows is one pass: W_hh h is summed, the input's part is
// added and the cell applied while the sums are still in the innermost cache, and only its results go further. The
// input's part, W_ih x + biases, is computed in the same layout for a chunk of time steps at once, small enough to stay
// in the cache, by the thread that will use it.
#pragma once

#include "chunk.h"
#include "cpu/division.h"
#include "states.h"

namespace fusedlstm::cpu {

// What is multiplied, and how, is Self's, which has these members:
//
//     input_part(d, range, range_begin, rows, s0, s1, first_row)   pre-activations of steps s0 .. s1 - 1, into `pre`
//     begin_step(range, rows, s)          before the blocks of a step: makes ready what all of them read
//     block_step(i, next, own_block, rows, step, first_row, end_row)   the block's products, the cell, all stores
//     begin_projection(panels, rows, s), project(i, rows, step)    the same of panels of projected features
//
// Ranges of blocks count those of both directions in a row, and so do blocks `i`, and `next`, which is this thread's
// next one, or -1; own_block counts from the range's first. Of the rows of a chunk, those of step s begin at
// first_row[s - s0].
template <class Self, class K, class Cell, class Panel>
class Recurrence {
 public:
  using V = typename K::V;
  using acc = typename K::acc;
  using storage = typename K::storage;

 protected:
  const ForwardArgs& a;
  const Shape& shape;
  const Plan& plan;
  const RowIndex index;
  const int64_t blocks, project_panels;  // in each direction
  const int64_t chunks;                  // that the time steps are divided into, as even as can be
  const int64_t chunk, chunk_rows;       // steps and rows of a chunk of pre-activations, at most
  States<K, Cell, Panel> states;
  acc* pre;  // of this share: [blocks of the range][chunk rows][sums]

  // units: hidden units, padded to whole blocks; h_width: elements of a row of h.
  Recurrence(const ForwardArgs& args, const Cell& cell, const Plan& plan, int64_t blocks, int64_t project_panels,
             int64_t units, int64_t h_width)
      : a(args),
        shape(args.shape),
        plan(plan),
        index(args.shape, args.rows),
        blocks(blocks),
        project_panels(project_panels),
        chunks(count_chunks()),
        chunk(steps_of_chunk(shape.steps, chunks)),
        chunk_rows(chunk * rows_of_group(plan, shape)),
        states(args, cell, index, units, h_width) {}

  // The code is left out of cells that never do.
  bool projects() const { return Cell::kSizes.projects && shape.proj > 0; }

  // Rows of this share's pre-activations, of all its blocks.
  int64_t own_rows() const { return blocks_per_share() * chunk_rows; }

  void lay_out(Arena& arena, int64_t share) {
    states.lay_out(arena);
    const int64_t own = own_rows() * Panel::kWidth;
    pre = arena.take<acc>(plan.threads * own) + share * own;
  }

  void run_steps(Share& share) {
    states.start(share);
    share.meet();
    for_each_task(plan, shape, share, [&](const Task& task) { steps(task); });
  }

  const storage* input_row(int64_t d, int64_t s, int64_t b) const {
    return index.data_row<storage>(a.input, index.step(s, d), b);
  }

 private:
  Self& self() { return static_cast<Self&>(*this); }

  int64_t blocks_per_share() const {
    return plan.split == Split::kRows ? blocks : (shape.directions * blocks + plan.threads - 1) / plan.threads;
  }
  int64_t count_chunks() const {
    const int64_t rows = rows_of_group(plan, shape);
    return chunks_of(shape.steps, rows, blocks_per_share() * Panel::kWidth * int64_t(sizeof(acc)),
                     a.awaited ? awaited_steps(shape.steps, rows) : kMaxChunkSteps);
  }

  void steps(const Task& task) {
    const Range rows = task.rows;
    int64_t first_row[2][kMaxChunkSteps + 1];
    for (int64_t i = 0; i < chunks; ++i) {
      const auto [s0, s1] = part(shape.steps, i, chunks);
      if (a.awaited) a.awaited->wait_for(s1);
      Range range{0, 0};  // of blocks whose pre-activations of the chunk are there
      for (int64_t s = s0; s < s1; ++s) {
        // Always of the whole chunk: what rows are multiplied together decides the last bit.
        if (const Range own = task.of(blocks); own != range) input_parts(range = own, rows, s0, s1, first_row);
        self().begin_step(range, rows, s);
        for (int64_t n = range.begin; n < range.end; ++n) {
          // Every other step goes through the panels backwards: those used last are still in the cache.
          const int64_t on = s & 1 ? -1 : 1, i = on > 0 ? n : range.end - 1 - (n - range.begin), d = i / blocks;
          self().block_step(i, n + 1 < range.end ? i + on : -1, i - range.begin, rows, index.at(d, s),
                            first_row[d][s - s0], first_row[d][s - s0 + 1]);
        }
        if (projects()) {
          task.meet();
          const Range own = task.of(project_panels);
          self().begin_projection(own, rows, s);
          for (int64_t i = own.begin; i < own.end; ++i) self().project(i, rows, index.at(i / project_panels, s));
        }
        task.meet();
        if (a.reported) a.reported->reach(s + 1);
      }
    }
    const Range range = task.of(blocks);
    for (int64_t i = range.begin; i < range.end; ++i) states.finish(i / blocks, i % blocks, rows);
  }

  void input_parts(Range range, Range rows, int64_t s0, int64_t s1, int64_t (*first_row)[kMaxChunkSteps + 1]) {
    for_each_direction(range, blocks, [&](int64_t d, Range own) {
      count_rows(first_row[d], d, rows, s0, s1);
      self().input_part(d, {d * blocks + own.begin, d * blocks + own.end}, range.begin, rows, s0, s1, first_row[d]);
    });
  }

  // Only packed batches shrink.
  void count_rows(int64_t* first_row, int64_t d, Range rows, int64_t s0, int64_t s1) const {
    first_row[0] = 0;
    for (int64_t s = s0; s < s1; ++s) first_row[s - s0 + 1] = first_row[s - s0] + index.rows_at(index.step(s, d), rows);
  }
};

}  // namespace fusedlstm::cpu
