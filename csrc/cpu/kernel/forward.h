// The forward recurrence of one layer.
//
// Each time step of a block of hidden units and a tile of batch rows is one pass: W_hh h is summed, the input's part is
// added and the cell applied while the sums are still in the innermost cache, and only its results go further. The
// input's part, W_ih x + biases, is computed in the same panel layout for a chunk of time steps at once, small enough
// to stay in the cache, by the thread that will use it.
#pragma once

#include <initializer_list>

#include "cpu/division.h"
#include "direct.h"
#include "layer_panels.h"
#include "states.h"

namespace fusedlstm::cpu {

inline constexpr int64_t kChunkBytes = 256 << 10;  // of pre-activations: a quarter of a usual L2 cache
inline constexpr int64_t kChunkRows = 48;          // at least, for full tiles
inline constexpr int64_t kMaxChunkSteps = 256;

template <class K, class Cell>
class Forward {
 public:
  using V = typename K::V;
  using acc = typename K::acc;
  using operand = typename K::operand;
  using storage = typename K::storage;
  using Panels = LayerPanels<K, Cell::kSizes>;
  using Panel = typename Panels::Panel;

  Forward(const ForwardArgs& args, const Cell& cell, const Plan& plan)
      : a(args),
        shape(args.shape),
        plan(plan),
        index(args.shape, args.rows),
        panels(args),
        blocks(panels.blocks),
        chunk(chunk_steps()),
        chunk_rows(chunk * rows_of_group(plan, shape)),
        depth_x(plan.direct ? round_up(shape.input, kVector) : panels.depth_x),
        states(args, cell, index, panels.units,
               round_up(shape.proj > 0 ? panels.project_panels * K::kPanel : panels.units, kVector)) {}

  int64_t workspace_bytes() {
    Arena arena{nullptr};
    lay_out(arena, 0);
    return arena.used;
  }

  void run(Share& share, char* memory) {
    Arena arena{memory};
    lay_out(arena, share.first);
    if (!a.frozen) panels.pack(share);
    states.start(share);
    share.meet();
    for_each_task(plan, shape, share, [&](const Task& task) { steps(task); });
  }

 private:
  const ForwardArgs& a;
  const Shape& shape;
  const Plan& plan;
  const RowIndex index;
  Panels panels;
  const int64_t blocks;             // of units, in each direction
  const int64_t chunk, chunk_rows;  // steps and rows of a chunk of pre-activations
  const int64_t depth_x;            // of staged rows of input
  States<K, Cell> states;
  // Of this share.
  acc *pre, *pre_apart;  // [blocks of the range][chunk rows][sums]; where direct, input's parts of gates that are apart
  operand* staged;       // [D][chunk rows][depth_x], where the input cannot be read in place

  static constexpr int64_t kVector = K::kLanes * K::kDepth;  // operands of one vector
  static constexpr int64_t kApartWidth = Panels::kApartWidth;
  static constexpr bool kInputIsOperand = std::is_same_v<storage, operand>;
  // The code is left out of cells that never do.
  bool projects() const { return Cell::kSizes.projects && shape.proj > 0; }
  bool staging() const { return plan.direct || !kInputIsOperand || shape.input % K::kDepth != 0; }

  int64_t blocks_per_share() const {
    return plan.split == Split::kRows ? blocks : (shape.directions * blocks + plan.threads - 1) / plan.threads;
  }
  int64_t chunk_steps() const {
    const int64_t rows = shape.batch > 0 ? rows_of_group(plan, shape) : 1;
    const int64_t bytes = rows * blocks_per_share() * Panel::kWidth * int64_t(sizeof(acc));
    int64_t n = kChunkBytes / (bytes > 0 ? bytes : 1);
    if (n * rows < kChunkRows) n = (kChunkRows + rows - 1) / rows;
    n = n < shape.steps ? n : shape.steps;
    return n < 1 ? 1 : n < kMaxChunkSteps ? n : kMaxChunkSteps;
  }

  void lay_out(Arena& arena, int64_t share) {
    if (a.frozen) {
      Arena frozen{const_cast<char*>(a.frozen)};  // nothing is written
      panels.lay_out(frozen);
    } else {
      // The input's panels are met once in a single chunk, those of the hidden state in a single step; in either case
      // by one group of rows only.
      const bool one_group = row_groups(plan, shape) == 1;
      panels.lay_out(arena, {plan.direct, shape.steps <= chunk && one_group, shape.steps == 1 && one_group}, share,
                     plan.threads);
    }
    states.lay_out(arena);
    const int64_t own_rows = blocks_per_share() * chunk_rows, own_pre = own_rows * Panel::kWidth,
                  own_apart = plan.direct ? own_rows * kApartWidth : 0,
                  own_staged = staging() ? shape.directions * chunk_rows * depth_x : 0;
    pre = arena.take<acc>(plan.threads * own_pre) + share * own_pre;
    pre_apart = arena.take<acc>(plan.threads * own_apart) + share * own_apart;
    staged = arena.take<operand>(plan.threads * own_staged) + share * own_staged;
  }

  void steps(const Task& task) {
    const Range rows = task.rows;
    int64_t first_row[2][kMaxChunkSteps + 1];
    for (int64_t s0 = 0; s0 < shape.steps; s0 += chunk) {
      const int64_t s1 = s0 + chunk < shape.steps ? s0 + chunk : shape.steps;
      Range range{0, 0};  // of blocks whose pre-activations of the chunk are there
      for (int64_t s = s0; s < s1; ++s) {
        // Always of the whole chunk: what rows are multiplied together decides the last bit.
        if (const Range own = task.of(blocks); own != range) input_parts(range = own, rows, s0, s1, first_row);
        for (int64_t n = range.begin; n < range.end; ++n) {
          // Every other step goes through the panels backwards: those used last are still in the cache.
          const int64_t i = s & 1 ? range.end - 1 - (n - range.begin) : n, d = i / blocks;
          block_step(i, i - range.begin, rows, index.at(d, s), first_row[d][s - s0], first_row[d][s - s0 + 1]);
        }
        if (projects()) {
          task.meet();
          const Range own = task.of(panels.project_panels);
          for (int64_t i = own.begin; i < own.end; ++i) project(i, rows, index.at(i / panels.project_panels, s));
        }
        task.meet();
      }
    }
    const Range range = task.of(blocks);
    for (int64_t i = range.begin; i < range.end; ++i) states.finish(i / blocks, i % blocks, rows);
  }

  void input_parts(Range range, Range rows, int64_t s0, int64_t s1, int64_t (*first_row)[kMaxChunkSteps + 1]) {
    for_each_direction(range, blocks, [&](int64_t d, Range own) {
      count_rows(first_row[d], d, rows, s0, s1);
      input_part(d, {d * blocks + own.begin, d * blocks + own.end}, range.begin, rows, s0, s1, first_row[d]);
    });
  }

  // first_row[s - s0]: where step s starts among the chunk's rows. Only packed batches shrink.
  void count_rows(int64_t* first_row, int64_t d, Range rows, int64_t s0, int64_t s1) const {
    first_row[0] = 0;
    for (int64_t s = s0; s < s1; ++s) first_row[s - s0 + 1] = first_row[s - s0] + index.rows_at(index.step(s, d), rows);
  }

  // pre[block][row] = bias + W_ih x, folded like its block, for the rows of steps s0 .. s1 - 1. Accumulated as `acc`.
  void input_part(int64_t d, Range range, int64_t range_begin, Range rows, int64_t s0, int64_t s1,
                  const int64_t* first_row) {
    const int64_t total = first_row[s1 - s0];
    if (staging()) {
      for (int64_t s = s0, q = 0; s < s1; ++s)
        for (; q < first_row[s - s0 + 1]; ++q)
          to_operands<K>(staged + (d * chunk_rows + q) * depth_x, input_row(d, s, rows.begin + q - first_row[s - s0]),
                         shape.input, depth_x);
    }
    if (plan.direct) return;  // both products are made together, step by step
    for (int64_t i = range.begin; i < range.end; ++i)
      input_block(d, i, pre + (i - range_begin) * chunk_rows * Panel::kWidth, rows, s0, first_row, total);
  }

  void input_block(int64_t d, int64_t i, acc* to, Range rows, int64_t s0, const int64_t* first_row, int64_t total) {
    const operand* panel = panels.of_input(i);
    const int vectors = Panel::vectors_of(panels.units_from(i));
    alignas(64) acc biases[kPanelVectors * K::kLanes];
    Panel::arrange(biases, panels.bias_of(i), panels.units_from(i));
    int64_t s = s0;
    for_each_tile<Panel::kTileRows>(total, [&](int64_t q, int count) FUSEDLSTM_LAMBDA {
      const operand* x[Panel::kTileRows];
      for (int r = 0; r < count; ++r) {
        if constexpr (kInputIsOperand) {
          while (q + r >= first_row[s - s0 + 1]) ++s;
          x[r] = staging() ? staged + (d * chunk_rows + q + r) * depth_x
                           : input_row(d, s, rows.begin + q + r - first_row[s - s0]);
        } else {
          x[r] = staged + (d * chunk_rows + q + r) * depth_x;
        }
      }
      multiply<typename K::Isa, typename K::Product>(
          {to + q * Panel::kWidth, Panel::kWidth, x, panel, depth_x, input_stretch(depth_x), biases}, count, vectors);
    });
  }

  const storage* input_row(int64_t d, int64_t s, int64_t b) const {
    return index.data_row<storage>(a.input, index.step(s, d), b);
  }

  // One block of units of one time step: its pre-activations, the cell, and all stores.
  void block_step(int64_t i, int64_t own_block, Range rows, Step step, int64_t first_row, int64_t end_row) {
    const int64_t unit = panels.unit_of(i), row = own_block * chunk_rows + first_row, count = end_row - first_row;
    if (plan.direct) {
      direct_block(i, rows, step, pre + row * Panel::kWidth, pre_apart + row * kApartWidth, first_row, count);
    } else {
      packed_block(i, rows, step, pre + row * Panel::kWidth, count);
    }
    for (int64_t u = unit; !projects() && u < unit + Panel::kUnits; u += K::kLanes)
      states.hold({rows.begin + count, rows.end}, step, u);
  }

  // Tile by tile: W_hh h, and the cell.
  void packed_block(int64_t i, Range rows, Step step, const acc* pre_block, int64_t count) {
    const operand* panel = panels.of_hidden(i);
    const operand* h_now = states.h_row(step.d, step.s, rows.begin);
    const int vectors = Panel::vectors_of(panels.units_from(i));
    for_each_tile<Panel::kTileRows>(count, [&](int64_t r0, int tile_rows) FUSEDLSTM_LAMBDA {
      // W_hh h is summed from zero and then added: its rounding errors are in proportion to it, and it is usually much
      // smaller than the input's part.
      alignas(64) acc tile[Panel::kTileRows * Panel::kWidth];
      const operand* x[Panel::kTileRows];
      for (int r = 0; r < tile_rows; ++r) x[r] = h_now + (r0 + r) * states.h_width;
      multiply<typename K::Isa, typename K::Product>({tile, Panel::kWidth, x, panel, panels.depth_h, kForwardStretch},
                                                     tile_rows, vectors);
      states.finish_rows(tile, pre_block + r0 * Panel::kWidth, panels.bias_hidden_of(i), tile_rows, step,
                         rows.begin + r0, panels.unit_of(i));
    });
  }

  // Row by row, both products with the weights where they are; `to` receives the sums of both, or of the hidden part of
  // gates that are apart, whose other part goes to `apart`.
  void direct_block(int64_t i, Range rows, Step step, acc* to, acc* apart, int64_t first_row, int64_t count) {
    const int64_t d = step.d, unit = panels.unit_of(i);
    const int64_t end = unit + Panel::kUnits < shape.hidden ? unit + Panel::kUnits : shape.hidden;
    const operand* h_now = states.h_row(d, step.s, rows.begin);
    const DirectOperand<K> operands[2] = {
        {static_cast<const storage*>(a.weights[d].ih), staged + (d * chunk_rows + first_row) * depth_x, shape.input,
         depth_x},
        {static_cast<const storage*>(a.weights[d].hh), h_now, shape.recurrent(), states.h_width}};
    // Padded units stay at rest.
    __builtin_memset(to, 0, size_t(count * Panel::kWidth) * sizeof(acc));
    __builtin_memset(apart, 0, size_t(count * kApartWidth) * sizeof(acc));
    direct_gates<K>(operands, shape.hidden, {unit, end}, count,
                    {Panel::kGates, Cell::kSizes.joined, Panel::kUnits, to, apart});
    const acc* biases = panels.bias_of(i);
    for (int64_t r = 0; r < count; ++r) {
      const acc* from_input = biases;
      [[maybe_unused]] alignas(64) acc with_apart[Panel::kWidth];
      if constexpr (Panel::kApart > 0) {
        __builtin_memcpy(with_apart, biases, sizeof with_apart);
        for (int64_t u = 0; u < kApartWidth; u += K::kLanes)
          add(with_apart + Panel::kWidth - kApartWidth + u, load<V>(apart + r * kApartWidth + u));
        from_input = with_apart;
      }
      states.finish_row(to + r * Panel::kWidth, from_input, panels.bias_hidden_of(i), step, rows.begin + r, unit);
    }
  }

  // h = W_hr (o * tanh(c)) for one panel of projected features. Panel k beyond `hidden` is zero.
  void project(int64_t i, Range rows, Step step) {
    const int64_t column = i % panels.project_panels * K::kPanel;
    const operand* from = states.m_row(step.d, rows.begin);
    const int64_t count = index.rows_at(step.t, rows);
    for_each_tile<K::kTileRows>(count, [&](int64_t r0, int tile_rows) FUSEDLSTM_LAMBDA {
      alignas(64) acc tile[K::kTileRows * K::kPanel];
      const operand* x[K::kTileRows];
      for (int r = 0; r < tile_rows; ++r) x[r] = from + (r0 + r) * states.units;
      multiply<typename K::Isa, typename K::Product>(
          {tile, K::kPanel, x, panels.of_projection(i), states.units, kForwardStretch}, tile_rows, kPanelVectors);
      for (int r = 0; r < tile_rows; ++r)
        for (int q = 0; q < K::kPanel; q += K::kLanes)
          states.write_projected(load<V>(tile + r * K::kPanel + q), step, rows.begin + r0 + r, column + q);
    });
    for (int q = 0; q < kPanelVectors; ++q) states.hold({rows.begin + count, rows.end}, step, column + q * K::kLanes);
  }
};

}  // namespace fusedlstm::cpu
