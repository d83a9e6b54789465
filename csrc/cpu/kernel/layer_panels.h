// The weights of a layer as its forward recurrence reads them: panels and biases. Those of a frozen layer were made
// ahead, those of any other are made in each call.
#pragma once

#include "cpu/division.h"
#include "gate_panel.h"
#include "row_index.h"

namespace fusedlstm::cpu {

template <class K, CellSizes kSizes>
class LayerPanels {
 public:
  using V = typename K::V;
  using acc = typename K::acc;
  using operand = typename K::operand;
  using storage = typename K::storage;
  using Panel = GatePanel<K, kSizes>;
  static constexpr int64_t kApartWidth = Panel::kApart * Panel::kUnits;

  // How a call uses them. direct: biases only, weights are read where they are. once: each panel of the input's weight,
  // or of the hidden state's, is met once; it is then made right before, and stays in the cache.
  struct Use {
    bool direct = false, input_once = false, hidden_once = false;
  };

  // Blocks of units and panels of projected features, each in one direction; hidden units, padded; elements of k of the
  // panels of input and h.
  const int64_t blocks, project_panels, units, depth_x, depth_h;

  explicit LayerPanels(const LayerArgs& args)
      : blocks(round_up(args.shape.hidden, Panel::kUnits) / Panel::kUnits),
        project_panels(round_up(args.shape.proj, K::kPanel) / K::kPanel),
        units(blocks * Panel::kUnits),
        depth_x(round_up(args.shape.input, K::kDepth)),
        depth_h(round_up(args.shape.recurrent(), K::kDepth)),
        a(args),
        shape(args.shape) {}

  // The place of a team's panels, as share `share` of `shares` sees it.
  void lay_out(Arena& arena, Use how, int64_t share, int64_t shares) {
    const int64_t d = shape.directions;
    use = how;
    const auto take = [&](int64_t depth, bool is_met_once) {
      if (use.direct) return arena.take<operand>(0);
      const int64_t one = depth * K::kPanel;
      if (is_met_once) return arena.take<operand>(shares * one) + share * one;
      return arena.take<operand>(d * Panel::panels_size(blocks, depth));
    };
    panels_x = take(depth_x, use.input_once);
    panels_h = take(depth_h, use.hidden_once);
    panels_r = arena.take<operand>(d * project_panels * units * K::kPanel);
    bias = arena.take<acc>(d * blocks * Panel::kWidth);
    bias_hidden = arena.take<acc>(d * blocks * kApartWidth);
  }
  // Of those that are made once for many calls.
  void lay_out(Arena& arena) { lay_out(arena, {}, 0, 1); }

  // Makes them; a team shares the work by blocks.
  void pack(const Share& share) {
    const Range range = share.of(shape.directions * blocks);
    for (int64_t i = range.begin; i < range.end; ++i) {
      const Weights& w = a.weights[i / blocks];
      if (!use.direct && !use.input_once) pack_block(panel_at(panels_x, depth_x, i), w.ih, shape.input, i);
      if (!use.direct && !use.hidden_once) pack_block(panel_at(panels_h, depth_h, i), w.hh, shape.recurrent(), i);
      for (int gate = 0; gate < Panel::kGates; ++gate)
        for (int64_t u = 0; u < Panel::kUnits; u += K::kLanes) pack_bias(w, i, gate, u);
    }
    const Range panels = share.of(shape.directions * project_panels);
    for (int64_t i = panels.begin; kSizes.projects && i < panels.end; ++i) {
      const auto* hr = static_cast<const storage*>(a.weights[i / project_panels].hr);
      // panel[k][column] = hr[column][k]: the rows of a panel are columns of hr.
      pack_transposed(panels_r + i * units * K::kPanel, hr, i % project_panels * K::kPanel);
    }
  }

  // Of block i of all directions: its first unit, and how many there are from there on.
  int64_t unit_of(int64_t i) const { return i % blocks * Panel::kUnits; }
  int64_t units_from(int64_t i) const { return shape.hidden - unit_of(i); }

  // Panels of block i, ready for use; one that is met once is gone with the next call for one.
  const operand* of_input(int64_t i) const {
    return ready(panels_x, depth_x, use.input_once, a.weights[i / blocks].ih, shape.input, i);
  }
  const operand* of_hidden(int64_t i) const {
    return ready(panels_h, depth_h, use.hidden_once, a.weights[i / blocks].hh, shape.recurrent(), i);
  }
  // The same of a later block, -1 for none, while `rows` rows are multiplied by the one in use.
  Ahead input_ahead(int64_t next, int64_t rows) const { return ahead(panels_x, depth_x, use.input_once, next, rows); }
  Ahead hidden_ahead(int64_t next, int64_t rows) const { return ahead(panels_h, depth_h, use.hidden_once, next, rows); }
  // Panel i of the projections of all directions, of depth `units`.
  const operand* of_projection(int64_t i) const { return panels_r + i * units * K::kPanel; }
  // Both biases of joined gates, those of input of others: [gate][unit].
  const acc* bias_of(int64_t i) const { return bias + i * Panel::kWidth; }
  // Those of hidden of gates that are apart.
  const acc* bias_hidden_of(int64_t i) const { return bias_hidden + i * kApartWidth; }

 private:
  const LayerArgs& a;
  const Shape& shape;
  Use use;
  operand *panels_x, *panels_h, *panels_r;  // [D][blocks] panels; [D][project_panels]
  acc *bias, *bias_hidden;                  // [D][blocks][gate][unit], the latter of gates that are apart

  operand* panel_at(operand* panels, int64_t depth, int64_t i) const {
    return panels + i / blocks * Panel::panels_size(blocks, depth) + i % blocks * Panel::kWidth * depth;
  }

  void pack_block(operand* to, const void* weight, int64_t depth, int64_t i) const {
    Panel::pack(to, static_cast<const storage*>(weight), shape.hidden, depth, unit_of(i));
  }

  const operand* ready(operand* panels, int64_t padded, bool is_met_once, const void* weight, int64_t depth,
                       int64_t i) const {
    if (!is_met_once) return panel_at(panels, padded, i);
    pack_block(panels, weight, depth, i);
    return panels;
  }

  Ahead ahead(operand* panels, int64_t depth, bool is_met_once, int64_t next, int64_t rows) const {
    if (next < 0 || is_met_once || rows < kRowsAhead) return {};
    return {reinterpret_cast<const char*>(panel_at(panels, depth, next)),
            Panel::kWidth * depth * int64_t(sizeof(operand)), rows};
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
    if (gate < kSizes.joined)
      sum += of(w.bias_hh);
    else
      store(bias_hidden + i * kApartWidth + (gate - kSizes.joined) * Panel::kUnits + u, of(w.bias_hh));
    store(bias + i * Panel::kWidth + gate * Panel::kUnits + u, sum);
  }

  void pack_transposed(operand* panel, const storage* hr, int64_t column) {
    for (int q = 0; q < kPanelVectors; ++q) {
      const int64_t first = column + q * K::kLanes;
      for (int64_t k = 0; k < units; k += K::kLanes * K::kDepth) {
        V v[K::kLanes] = {};
        for (int64_t l = 0; l < K::kLanes; ++l)
          if (first + l < shape.proj && k < shape.hidden)
            v[l] = depth_vector<K>(hr + (first + l) * shape.hidden + k, shape.hidden - k);
        transpose<K>(v);
        for (int64_t i = 0; i < K::kLanes && k + i * K::kDepth < units; ++i)
          store(panel + K::panel_at(kPanelVectors, units, k + i * K::kDepth, q), v[i]);
      }
    }
  }
};

}  // namespace fusedlstm::cpu
