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
#include "pack.h"
#include "row_index.h"
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
  using Panel = GatePanel<K, Cell::kSizes>;

  Forward(const ForwardArgs& args, const Cell& cell, const Plan& plan)
      : a(args),
        shape(args.shape),
        plan(plan),
        index(args.shape, args.rows),
        blocks(round_up(shape.hidden, Panel::kUnits) / Panel::kUnits),
        project_panels(round_up(shape.proj, K::kPanel) / K::kPanel),
        depth_x(round_up(shape.input, plan.direct ? kVector : K::kDepth)),
        depth_h(round_up(shape.recurrent(), K::kDepth)),
        states(args, cell, index, blocks * Panel::kUnits,
               round_up(shape.proj > 0 ? project_panels * K::kPanel : blocks * Panel::kUnits, kVector)),
        chunk(chunk_steps()),
        chunk_rows(chunk * rows_of_group(plan, shape)) {}

  int64_t workspace_bytes() {
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
  }

 private:
  const ForwardArgs& a;
  const Shape& shape;
  const Plan& plan;
  const RowIndex index;
  const int64_t blocks, project_panels, depth_x, depth_h;
  States<K, Cell> states;
  const int64_t chunk, chunk_rows;  // steps and rows of a chunk of pre-activations
  // Shared by the team; of panels that are met once each share has the one in use.
  operand *panels_x, *panels_h, *panels_r;  // [D][blocks] panels of depth_x, depth_h; [D][project_panels] of units
  acc *bias, *bias_hidden;                  // [D][blocks][gate][unit], the latter of gates that are apart
  // Of this share.
  acc *pre, *pre_apart;  // [blocks of the range][chunk rows][sums]; where direct, input's parts of gates that are apart
  operand* staged;       // [D][chunk rows][depth_x], where the input cannot be read in place

  static constexpr int64_t kVector = K::kLanes * K::kDepth;  // operands of one vector
  static constexpr int64_t kApartWidth = Panel::kApart * Panel::kUnits;
  static constexpr bool kInputIsOperand = std::is_same_v<storage, operand>;
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
    const int64_t d = shape.directions;
    const auto take_panels = [&](int64_t depth, bool is_met_once) {
      if (plan.direct) return arena.take<operand>(0);
      const int64_t one = depth * K::kPanel;
      if (is_met_once) return arena.take<operand>(plan.threads * one) + share * one;
      return arena.take<operand>(d * Panel::panels_size(blocks, depth));
    };
    panels_x = take_panels(depth_x, meets_input_once());
    panels_h = take_panels(depth_h, meets_hidden_once());
    panels_r = arena.take<operand>(d * project_panels * states.units * K::kPanel);
    bias = arena.take<acc>(d * blocks * Panel::kWidth);
    bias_hidden = arena.take<acc>(d * blocks * kApartWidth);
    states.lay_out(arena);
    const int64_t own_rows = blocks_per_share() * chunk_rows, own_pre = own_rows * Panel::kWidth,
                  own_apart = plan.direct ? own_rows * kApartWidth : 0,
                  own_staged = staging() ? shape.directions * chunk_rows * depth_x : 0;
    pre = arena.take<acc>(plan.threads * own_pre) + share * own_pre;
    pre_apart = arena.take<acc>(plan.threads * own_apart) + share * own_apart;
    staged = arena.take<operand>(plan.threads * own_staged) + share * own_staged;
  }

  // Panels of all weights, and the initial states; the team shares the work by blocks.
  void pack(const Share& share) {
    const Range range = share.of(shape.directions * blocks);
    for (int64_t i = range.begin; i < range.end; ++i) {
      const Weights& w = a.weights[i / blocks];
      if (!plan.direct && !meets_input_once()) pack_block(panel_at(panels_x, depth_x, i), w.ih, shape.input, i);
      if (!plan.direct && !meets_hidden_once()) pack_block(panel_at(panels_h, depth_h, i), w.hh, shape.recurrent(), i);
      for (int gate = 0; gate < Panel::kGates; ++gate)
        for (int64_t u = 0; u < Panel::kUnits; u += K::kLanes) pack_bias(w, i, gate, u);
    }
    const Range panels = share.of(shape.directions * project_panels);
    for (int64_t i = panels.begin; i < panels.end; ++i) {
      const auto* hr = static_cast<const storage*>(a.weights[i / project_panels].hr);
      // panel[k][column] = hr[column][k]: the rows of a panel are columns of hr.
      pack_transposed(panels_r + i * states.units * K::kPanel, hr, i % project_panels * K::kPanel);
    }
    states.start(share);
  }

  // Both biases of a joined gate are in the input's part.
  void pack_bias(const Weights& w, int64_t i, int gate, int64_t u) {
    const int64_t unit = unit_of(i) + u;
    const auto of = [&](const void* b) {
      return b && unit < shape.hidden
                 ? K::load(static_cast<const storage*>(b) + gate * shape.hidden + unit, shape.hidden - unit)
                 : V{};
    };
    V sum{};
    sum += of(w.bias_ih);
    if (gate < Cell::kSizes.joined)
      sum += of(w.bias_hh);
    else
      store(bias_hidden + i * kApartWidth + (gate - Cell::kSizes.joined) * Panel::kUnits + u, of(w.bias_hh));
    store(bias + i * Panel::kWidth + gate * Panel::kUnits + u, sum);
  }

  // A panel that is used once is packed right before: it stays in the cache. That of the input is in a single chunk,
  // that of the hidden state in a single step.
  bool meets_input_once() const { return shape.steps <= chunk && row_groups(plan, shape) == 1; }
  bool meets_hidden_once() const { return shape.steps == 1 && row_groups(plan, shape) == 1; }

  int64_t unit_of(int64_t i) const { return i % blocks * Panel::kUnits; }
  int64_t units_from(int64_t i) const { return shape.hidden - unit_of(i); }

  operand* panel_at(operand* panels, int64_t depth, int64_t i) const {
    return panels + i / blocks * Panel::panels_size(blocks, depth) + i % blocks * Panel::kWidth * depth;
  }

  void pack_block(operand* to, const void* weight, int64_t depth, int64_t i) const {
    Panel::pack(to, static_cast<const storage*>(weight), shape.hidden, depth, unit_of(i));
  }

  // The panel of block i, ready for use, of a weight whose panels have `padded` depth.
  const operand* panel_of(operand* panels, const void* weight, int64_t depth, int64_t padded, int64_t i,
                          bool is_met_once) const {
    if (!is_met_once) return panel_at(panels, padded, i);
    pack_block(panels, weight, depth, i);
    return panels;
  }

  void pack_transposed(operand* panel, const storage* hr, int64_t column) {
    for (int q = 0; q < kPanelVectors; ++q) {
      const int64_t first = column + q * K::kLanes;
      for (int64_t k = 0; k < states.units; k += K::kLanes * K::kDepth) {
        V v[K::kLanes] = {};
        for (int64_t l = 0; l < K::kLanes; ++l)
          if (first + l < shape.proj && k < shape.hidden)
            v[l] = depth_vector<K>(hr + (first + l) * shape.hidden + k, shape.hidden - k);
        transpose<K>(v);
        for (int64_t i = 0; i < K::kLanes && k + i * K::kDepth < states.units; ++i)
          store(panel + K::panel_at(kPanelVectors, states.units, k + i * K::kDepth, q), v[i]);
      }
    }
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
        if (shape.proj > 0) {
          task.meet();
          const Range panels = task.of(project_panels);
          for (int64_t i = panels.begin; i < panels.end; ++i) project(i, rows, index.at(i / project_panels, s));
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
    const operand* panel = panel_of(panels_x, a.weights[d].ih, shape.input, depth_x, i, meets_input_once());
    const int vectors = Panel::vectors_of(units_from(i));
    alignas(64) acc biases[kPanelVectors * K::kLanes];
    Panel::arrange(biases, bias + i * Panel::kWidth, units_from(i));
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
    const int64_t unit = unit_of(i), row = own_block * chunk_rows + first_row, count = end_row - first_row;
    if (plan.direct) {
      direct_block(i, rows, step, pre + row * Panel::kWidth, pre_apart + row * kApartWidth, first_row, count);
    } else {
      packed_block(i, rows, step, pre + row * Panel::kWidth, count);
    }
    for (int64_t u = unit; shape.proj == 0 && u < unit + Panel::kUnits; u += K::kLanes)
      states.hold({rows.begin + count, rows.end}, step, u);
  }

  // Tile by tile: W_hh h, and the cell.
  void packed_block(int64_t i, Range rows, Step step, const acc* pre_block, int64_t count) {
    const operand* panel = panel_of(panels_h, a.weights[step.d].hh, shape.recurrent(), depth_h, i, meets_hidden_once());
    const operand* h_now = states.h_row(step.d, step.s, rows.begin);
    const int vectors = Panel::vectors_of(units_from(i));
    for_each_tile<Panel::kTileRows>(count, [&](int64_t r0, int tile_rows) FUSEDLSTM_LAMBDA {
      // W_hh h is summed from zero and then added: its rounding errors are in proportion to it, and it is usually much
      // smaller than the input's part.
      alignas(64) acc tile[Panel::kTileRows * Panel::kWidth];
      const operand* x[Panel::kTileRows];
      for (int r = 0; r < tile_rows; ++r) x[r] = h_now + (r0 + r) * states.h_width;
      multiply<typename K::Isa, typename K::Product>({tile, Panel::kWidth, x, panel, depth_h, kForwardStretch},
                                                     tile_rows, vectors);
      states.finish_rows(tile, pre_block + r0 * Panel::kWidth, bias_hidden + i * kApartWidth, tile_rows, step,
                         rows.begin + r0, unit_of(i));
    });
  }

  // Row by row, both products with the weights where they are; `to` receives the sums of both, or of the hidden part of
  // gates that are apart, whose other part goes to `apart`.
  void direct_block(int64_t i, Range rows, Step step, acc* to, acc* apart, int64_t first_row, int64_t count) {
    const int64_t d = step.d, unit = unit_of(i);
    const int64_t end = unit + Panel::kUnits < shape.hidden ? unit + Panel::kUnits : shape.hidden;
    const operand* h_now = states.h_row(d, step.s, rows.begin);
    const DirectOperand<K> operands[2] = {
        {static_cast<const storage*>(a.weights[d].ih), staged + (d * chunk_rows + first_row) * depth_x, shape.input,
         depth_x},
        {static_cast<const storage*>(a.weights[d].hh), h_now, shape.recurrent(), states.h_width}};
    // Padded units stay at rest.
    __builtin_memset(to, 0, size_t(count * Panel::kWidth) * sizeof(acc));
    __builtin_memset(apart, 0, size_t(count * kApartWidth) * sizeof(acc));
    direct_gates<K, Cell::kSizes>(operands, shape.hidden, {unit, end}, count,
                                  [&](int64_t row, int part, int gate, int64_t u, V sums) FUSEDLSTM_LAMBDA {
                                    acc* of_row = part == 1 ? to + row * Panel::kWidth + gate * Panel::kUnits
                                                            : apart + row * kApartWidth +
                                                                  (gate - Cell::kSizes.joined) * Panel::kUnits;
                                    store_some(of_row + u - unit, sums, end - u);
                                  });
    const acc* biases = bias + i * Panel::kWidth;
    for (int64_t r = 0; r < count; ++r) {
      const acc* from_input = biases;
      [[maybe_unused]] alignas(64) acc with_apart[Panel::kWidth];
      if constexpr (Panel::kApart > 0) {
        __builtin_memcpy(with_apart, biases, sizeof with_apart);
        for (int64_t u = 0; u < kApartWidth; u += K::kLanes)
          add(with_apart + Panel::kWidth - kApartWidth + u, load<V>(apart + r * kApartWidth + u));
        from_input = with_apart;
      }
      states.finish_row(to + r * Panel::kWidth, from_input, bias_hidden + i * kApartWidth, step, rows.begin + r, unit);
    }
  }

  // h = W_hr (o * tanh(c)) for one panel of projected features. Panel k beyond `hidden` is zero.
  void project(int64_t i, Range rows, Step step) {
    const int64_t column = i % project_panels * K::kPanel;
    const operand* from = states.m_row(step.d, rows.begin);
    const int64_t count = index.rows_at(step.t, rows);
    for_each_tile<K::kTileRows>(count, [&](int64_t r0, int tile_rows) FUSEDLSTM_LAMBDA {
      alignas(64) acc tile[K::kTileRows * K::kPanel];
      const operand* x[K::kTileRows];
      for (int r = 0; r < tile_rows; ++r) x[r] = from + (r0 + r) * states.units;
      multiply<typename K::Isa, typename K::Product>(
          {tile, K::kPanel, x, panels_r + i * states.units * K::kPanel, states.units, kForwardStretch}, tile_rows,
          kPanelVectors);
      for (int r = 0; r < tile_rows; ++r)
        for (int q = 0; q < K::kPanel; q += K::kLanes)
          states.write_projected(load<V>(tile + r * K::kPanel + q), step, rows.begin + r0 + r, column + q);
    });
    for (int q = 0; q < kPanelVectors; ++q) states.hold({rows.begin + count, rows.end}, step, column + q * K::kLanes);
  }
};

}  // namespace fusedlstm::cpu
