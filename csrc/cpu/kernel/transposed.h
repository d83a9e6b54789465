// Products with a weight's transpose, by which gradients go back: x W for rows x, where forward has W y.
#pragma once

#include "pack.h"
#include "row_index.h"

namespace fusedlstm::cpu {

// Rows x of a product: `apart` from each other from `first` on, or each where it is.
template <class K>
struct OperandRows {
  const typename K::operand* first = nullptr;
  int64_t apart = 0;
  const typename K::operand* const* each = nullptr;
  const typename K::operand* operator()(int64_t r) const { return each ? each[r] : first + r * apart; }
};

// How a product goes through the panels. A recurrence changes the order from step to step: of more weights than a cache
// holds, those used last are still there.
enum class Order : int { kUp, kDown };

// One weight [depth, columns] of each direction, and how it is read:
//
//     kPanels   brought into panels before the first product, for many
//     kOnce     each panel is packed into the same few kilobytes right before its only use
//     kInPlace  where it lies, row after row, for a handful of rows x: packing would cost more than the product
template <class K>
class Transposed {
 public:
  using V = typename K::V;
  using acc = typename K::acc;
  using operand = typename K::operand;
  using storage = typename K::storage;

  enum class Reading : int { kPanels, kOnce, kInPlace };

  const int64_t panels;  // of one direction: what a team divides
  const Reading reading;

  // `is_met_once`: all of the weight by one product. Pairs of bfloat16 are multiplied by packed ones only.
  static constexpr Reading reading_of(const Plan& plan, bool is_met_once) {
    if (plan.direct && K::kDepth == 1) return Reading::kInPlace;
    return is_met_once ? Reading::kOnce : Reading::kPanels;
  }

  // `rows` are the most in one product. Rows x are padded to whole kDepth, and their first element is multiplied by row
  // `first_row` of the weight; row 0 follows the last one.
  Transposed(int64_t directions, int64_t depth, int64_t columns, int64_t rows, Reading reading, int64_t first_row = 0)
      : panels(round_up(columns, K::kPanel) / K::kPanel),
        reading(reading),
        directions(directions),
        depth(depth),
        padded(round_up(depth, K::kDepth)),
        columns(columns),
        rows(rows),
        first_row(first_row) {}

  FUSEDLSTM_NOINLINE void lay_out(Arena& arena, int64_t shares, int64_t share) {
    kept = arena.take<operand>(reading == Reading::kPanels ? directions * panels * padded * K::kPanel : 0);
    const int64_t own_panel = reading == Reading::kOnce ? (padded < kDepthBlock ? padded : kDepthBlock) * K::kPanel : 0;
    panel = arena.take<operand>(shares * own_panel) + share * own_panel;
    const int64_t strip = kStripBytes / int64_t(sizeof(acc)), narrow = rows * K::kPanel;
    const int64_t own_sums = reading != Reading::kInPlace ? narrow : 2 * (strip > narrow ? strip : narrow);
    sums = arena.take<acc>(shares * own_sums) + share * own_sums;
  }

  // Before the first product, of one of a layer's weights. The team divides what there is to pack.
  FUSEDLSTM_NOINLINE void prepare(const Share& share, const Weights* of_layer, const void* Weights::*weight) {
    for (int64_t d = 0; d < directions; ++d) weights[d] = static_cast<const storage*>(of_layer[d].*weight);
    if (reading != Reading::kPanels) return;
    const Range range = share.of(directions * panels);
    for (int64_t i = range.begin; i < range.end; ++i)
      for (int64_t k = 0; k < padded; k += kDepthBlock) pack(kept_at(i, k), i / panels, i % panels, k);
  }

  // finish(r, sums, column), sums[i] = column + i of x W for row r, as many as a panel has and the matrix: for all
  // r < count and the panels of `range` of direction d, up or down. What is large and the same for every `finish` is in
  // functions of its own.
  template <class Finish>
  FUSEDLSTM_INLINE void multiply(int64_t d, Range range, Order order, int64_t count, const OperandRows<K>& x,
                                 Finish finish) const {
    const bool in_place = K::kDepth == 1 && reading == Reading::kInPlace, is_up = order == Order::kUp;
    const int64_t at_once = in_place ? strip_panels(count) : 1, last = (padded - 1) / kDepthBlock * kDepthBlock;
    for (int64_t left = range.end - range.begin, some; count > 0 && left > 0; left -= some) {
      some = left < at_once ? left : at_once;
      const int64_t p = is_up ? range.end - left : range.begin + left - some, end = p + some, ld = some * K::kPanel;
      const int64_t next = left == some ? -1 : is_up ? p + 1 : p - 1;
      const operand* panel = nullptr;
      if (in_place)
        multiply_in_place(d, {p, end}, count, x);
      else
        panel = multiply_blocks(d, p, last, count, x);
      const int64_t tiles = in_place ? 1 : tiles_of<K::kTileRows>(count);
      for (int64_t i = 0; i < tiles; ++i) {
        const Range own = part(count, i, tiles);
        alignas(64) acc tile[K::kTileRows * K::kPanel];
        if (!in_place) multiply_block(tile, panel, p, last, own, x, ahead_of(d, p, last, next, count));
        const acc* from = in_place ? sums : tile;
        for (int64_t r = own.begin; r < own.end; ++r)
          for (int64_t q = p; q < end; ++q) finish(r, from + (r - own.begin) * ld + (q - p) * K::kPanel, q * K::kPanel);
      }
    }
  }

 private:
  static constexpr int64_t kStripBytes = 8 << 10;                 // of sums in place: a quarter of the innermost cache
  static constexpr int kTerms = 4;                                // rows of the weight that are added at once
  static constexpr int kTermRows = K::Isa::kDirectSums / kTerms;  // for so many rows x

  const int64_t directions, depth, padded, columns, rows, first_row;
  const storage* weights[2];
  operand* kept;   // by the team: [directions][panels] of `padded`
  operand* panel;  // of this share: the one in use
  acc* sums;       // of this share: partial ones

  operand* kept_at(int64_t i, int64_t k) const { return kept + (i * padded + k) * K::kPanel; }

  // What element k of rows x is multiplied by.
  const storage* weight_row(int64_t d, int64_t k) const {
    return weights[d] + (k + first_row < depth ? k + first_row : k + first_row - depth) * columns;
  }

  int64_t depth_of_block(int64_t k) const { return padded - k < kDepthBlock ? padded - k : kDepthBlock; }

  // The panel of the block of depth that begins at k.
  FUSEDLSTM_NOINLINE void pack(operand* to, int64_t d, int64_t p, int64_t k) const {
    const int64_t n = depth_of_block(k);
    pack_columns<K>(
        to, [&](int64_t row) FUSEDLSTM_LAMBDA { return weight_row(d, k + row); }, {0, n}, depth - k, n, columns,
        p * K::kPanel);
  }

  const operand* panel_of(int64_t d, int64_t p, int64_t k) const {
    if (reading == Reading::kPanels) return kept_at(d * panels + p, k);
    pack(panel, d, p, k);
    return panel;
  }

  // What is multiplied after the block of depth at k of panel p: its next block, or the first one of panel `next`, -1:
  // none.
  Ahead ahead_of(int64_t d, int64_t p, int64_t k, int64_t next, int64_t count) const {
    const bool is_within = k + depth_of_block(k) < padded;
    if ((!is_within && next < 0) || reading != Reading::kPanels || count < kRowsAhead) return {};
    const int64_t begin = is_within ? k + depth_of_block(k) : 0;
    return {reinterpret_cast<const char*>(kept_at(d * panels + (is_within ? p : next), begin)),
            depth_of_block(begin) * K::kPanel * int64_t(sizeof(operand)), count};
  }

  // Panels whose sums are in the cache together.
  static int64_t strip_panels(int64_t count) {
    const int64_t n = kStripBytes / (K::kPanel * int64_t(sizeof(acc)) * (count > 0 ? count : 1));
    return n > 1 ? n : 1;
  }

  // The sums of a panel of the blocks of depth before `end`, into `sums`; returns the panel of the block at `end`.
  FUSEDLSTM_NOINLINE const operand* multiply_blocks(int64_t d, int64_t p, int64_t end, int64_t count,
                                                    const OperandRows<K>& x) const {
    for (int64_t k = 0; k < end; k += kDepthBlock) {
      const operand* own = panel_of(d, p, k);
      for_each_tile<K::kTileRows>(count, [&](int64_t r, int rows) FUSEDLSTM_LAMBDA {
        alignas(64) acc tile[K::kTileRows * K::kPanel];
        multiply_block(tile, own, p, k, {r, r + rows}, x, ahead_of(d, p, k, -1, count));
        __builtin_memcpy(sums + r * K::kPanel, tile, size_t(rows) * K::kPanel * sizeof(acc));
      });
    }
    return panel_of(d, p, end);
  }

  // tile = the rows `own` by the block of depth at k of a panel p, and what the blocks before it came to.
  FUSEDLSTM_NOINLINE void multiply_block(acc* tile, const operand* own_panel, int64_t p, int64_t k, Range own,
                                         const OperandRows<K>& x, const Ahead& ahead) const {
    const int rows = int(own.end - own.begin), vectors = vectors_of<K>(columns - p * K::kPanel);
    const operand* at[K::kTileRows];
    for (int r = 0; r < rows; ++r) at[r] = x(own.begin + r) + k;
    cpu::multiply<typename K::Isa, typename K::Product>(
        {tile, K::kPanel, at, own_panel, depth_of_block(k), kBackwardStretch, nullptr, ahead.at(own.begin)}, rows,
        vectors);
    for (int64_t r = 0; k > 0 && r < rows; ++r)
      for (int q = 0; q < vectors; ++q)
        add(tile + r * K::kPanel + q * K::kLanes, load<V>(sums + (own.begin + r) * K::kPanel + q * K::kLanes));
  }

  // The sums of panels that lie together, into `sums`. They are cleared before the first term: GCC contracts an
  // addition into a fused multiply-add where it is always made, and not in every copy where it may be the first.
  FUSEDLSTM_NOINLINE void multiply_in_place(int64_t d, Range range, int64_t count, const OperandRows<K>& x) const {
    const int64_t first = range.begin * K::kPanel, ld = range.end * K::kPanel - first;
    const int64_t wanted = columns - first < ld ? columns - first : ld;
    acc* part = sums + count * ld;
    for (int64_t k = 0; k < depth; k += kBackwardStretch) {
      const int64_t stop = k + kBackwardStretch < depth ? k + kBackwardStretch : depth;
      acc* to = k == 0 ? sums : part;
      __builtin_memset(to, 0, size_t(count * ld) * sizeof(acc));
      add_stretch(d, {k, stop}, count, x, {first, first + wanted}, to, ld);
      for (int64_t i = 0; k > 0 && i < count * ld; i += K::kLanes) add(sums + i, load<V>(part + i));
    }
  }

  // to[r][c] += sum over the k of a stretch of x[r][k] W[k][c].
  FUSEDLSTM_NOINLINE void add_stretch(int64_t d, Range stretch, int64_t count, const OperandRows<K>& x_rows,
                                      Range wanted, acc* to, int64_t ld) const {
    const auto add_rows = [&](int64_t k, auto terms) FUSEDLSTM_LAMBDA {
      constexpr int kSome = terms;
      const storage* weight[kSome];
      for (int j = 0; j < kSome; ++j) weight[j] = weight_row(d, k + j) + wanted.begin;
      const auto add_row = [&](int64_t r, auto some_rows) FUSEDLSTM_LAMBDA {
        constexpr int kRows = some_rows;
        V x[kRows][kSome];
        for (int i = 0; i < kRows; ++i)
          for (int j = 0; j < kSome; ++j) x[i][j] = K::Product::template broadcast<V>(x_rows(r + i) + k + j);
        for (int64_t c = 0; c < wanted.end - wanted.begin; c += K::kLanes) {
          V w[kSome];
          for (int j = 0; j < kSome; ++j) w[j] = K::load(weight[j] + c, wanted.end - wanted.begin - c);
          for (int i = 0; i < kRows; ++i) {
            acc* at = to + (r + i) * ld + c;
            V sum = load<V>(at);
            for (int j = 0; j < kSome; ++j) sum = K::Product::multiply_add(x[i][j], w[j], sum);
            store(at, sum);
          }
        }
      };
      int64_t r = 0;
      for (; r + kTermRows <= count; r += kTermRows) add_row(r, std::integral_constant<int, kTermRows>{});
      for (; r < count; ++r) add_row(r, std::integral_constant<int, 1>{});
    };
    int64_t k = stretch.begin;
    for (; k + kTerms <= stretch.end; k += kTerms) add_rows(k, std::integral_constant<int, kTerms>{});
    for (; k < stretch.end; ++k) add_rows(k, std::integral_constant<int, 1>{});
  }
};

}  // namespace fusedlstm::cpu
