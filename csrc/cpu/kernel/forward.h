// The forward recurrence of one layer, with weights in the dtype of its input.
#pragma once

#include "direct.h"
#include "layer_panels.h"
#include "recurrence.h"

namespace fusedlstm::cpu {

template <class K, class Cell>
class Forward : Recurrence<Forward<K, Cell>, K, Cell, GatePanel<K, Cell::kSizes>> {
  using Base = Recurrence<Forward, K, Cell, GatePanel<K, Cell::kSizes>>;
  friend Base;
  using Base::a, Base::shape, Base::plan, Base::index, Base::chunk, Base::chunk_rows, Base::states, Base::pre;
  using Base::projects, Base::input_row;

 public:
  using V = typename K::V;
  using acc = typename K::acc;
  using operand = typename K::operand;
  using storage = typename K::storage;
  using Panels = LayerPanels<K, Cell::kSizes>;
  using Panel = typename Panels::Panel;

  Forward(const ForwardArgs& args, const Cell& cell, const Plan& plan) : Forward(args, cell, plan, Panels(args)) {}

  int64_t workspace_bytes() {
    Arena arena{nullptr};
    lay_out(arena, 0);
    return arena.used;
  }

  void run(Share& share, char* memory) {
    Arena arena{memory};
    lay_out(arena, share.first);
    if (!a.frozen) panels.pack(share);
    Base::run_steps(share);
  }

 private:
  Panels panels;
  const int64_t depth_x;  // of staged rows of input
  // Of this share.
  acc* pre_apart;   // [blocks of the range][chunk rows][sums]; where direct, input's parts of gates that are apart
  operand* staged;  // [D][chunk rows][depth_x], where the input cannot be read in place

  static constexpr int64_t kVector = K::kLanes * K::kDepth;  // operands of one vector
  static constexpr int64_t kApartWidth = Panels::kApartWidth;
  static constexpr bool kInputIsOperand = std::is_same_v<storage, operand>;

  Forward(const ForwardArgs& args, const Cell& cell, const Plan& plan, const Panels& panels)
      : Base(args, cell, plan, panels.blocks, panels.project_panels, panels.units,
             round_up(args.shape.proj > 0 ? panels.project_panels * K::kPanel : panels.units, kVector)),
        panels(panels),
        depth_x(plan.direct ? round_up(shape.input, kVector) : panels.depth_x) {}

  bool staging() const { return plan.direct || !kInputIsOperand || shape.input % K::kDepth != 0; }

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
    Base::lay_out(arena, share);
    const int64_t own_apart = plan.direct ? Base::own_rows() * kApartWidth : 0,
                  own_staged = staging() ? shape.directions * chunk_rows * depth_x : 0;
    pre_apart = arena.take<acc>(plan.threads * own_apart) + share * own_apart;
    staged = arena.take<operand>(plan.threads * own_staged) + share * own_staged;
  }

  // What all blocks read is there.
  void begin_step(Range, Range, int64_t) {}
  void begin_projection(Range, Range, int64_t) {}

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
      input_block(d, i, i + 1 < range.end ? i + 1 : -1, pre + (i - range_begin) * chunk_rows * Panel::kWidth, rows, s0,
                  first_row, total);
  }

  void input_block(int64_t d, int64_t i, int64_t next, acc* to, Range rows, int64_t s0, const int64_t* first_row,
                   int64_t total) {
    const operand* panel = panels.of_input(i);
    const Ahead ahead = panels.input_ahead(next, total);
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
          {to + q * Panel::kWidth, Panel::kWidth, x, panel, depth_x, input_stretch(depth_x), biases, ahead.at(q)},
          count, vectors);
    });
  }

  // One block of units of one time step: its pre-activations, the cell, and all stores.
  void block_step(int64_t i, int64_t next, int64_t own_block, Range rows, Step step, int64_t first_row,
                  int64_t end_row) {
    const int64_t unit = panels.unit_of(i), row = own_block * chunk_rows + first_row, count = end_row - first_row;
    if (plan.direct) {
      direct_block(i, rows, step, pre + row * Panel::kWidth, pre_apart + row * kApartWidth, first_row, count);
    } else {
      packed_block(i, next, rows, step, pre + row * Panel::kWidth, count);
    }
    for (int64_t u = unit; !projects() && u < unit + Panel::kUnits; u += K::kLanes)
      states.hold({rows.begin + count, rows.end}, step, u);
  }

  // Tile by tile: W_hh h, and the cell.
  void packed_block(int64_t i, int64_t next, Range rows, Step step, const acc* pre_block, int64_t count) {
    const operand* panel = panels.of_hidden(i);
    const Ahead ahead = panels.hidden_ahead(next, count);
    const operand* h_now = states.h_row(step.d, step.s, rows.begin);
    const int vectors = Panel::vectors_of(panels.units_from(i));
    for_each_tile<Panel::kTileRows>(count, [&](int64_t r0, int tile_rows) FUSEDLSTM_LAMBDA {
      // W_hh h is summed from zero and then added: its rounding errors are in proportion to it, and it is usually much
      // smaller than the input's part.
      alignas(64) acc tile[Panel::kTileRows * Panel::kWidth];
      const operand* x[Panel::kTileRows];
      for (int r = 0; r < tile_rows; ++r) x[r] = h_now + (r0 + r) * states.h_width;
      multiply<typename K::Isa, typename K::Product>(
          {tile, Panel::kWidth, x, panel, panels.depth_h, hidden_stretch(Panel::kGates), nullptr, ahead.at(r0)},
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
