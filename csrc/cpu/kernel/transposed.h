// Products with a weight's transpose, by which gradients go back: x W for rows x, where forward has W y.
#pragma once

#include "pack.h"
#include "row_index.h"

namespace fusedlstm::cpu {

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

  // `rows` are the most in one product. Rows x are padded with zeros to whole kDepth.
  Transposed(int64_t directions, int64_t depth, int64_t columns, int64_t rows, Reading reading)
      : panels(round_up(columns, K::kPanel) / K::kPanel),
        reading(reading),
        directions(directions),
        depth(depth),
        padded(round_up(depth, K::kDepth)),
        columns(columns),
        rows(rows) {}

  void lay_out(Arena& arena, int64_t shares, int64_t share) {
    kept = arena.take<operand>(reading == Reading::kPanels ? directions * panels * padded * K::kPanel : 0);
    const int64_t own_panel = reading == Reading::kOnce ? (padded < kDepthBlock ? padded : kDepthBlock) * K::kPanel : 0;
    panel = arena.take<operand>(shares * own_panel) + share * own_panel;
    const int64_t strip = kStripBytes / int64_t(sizeof(acc)), narrow = rows * K::kPanel;
    const int64_t own_sums = reading != Reading::kInPlace ? narrow : 2 * (strip > narrow ? strip : narrow);
    sums = arena.take<acc>(shares * own_sums) + share * own_sums;
  }

  // Before the first product: weight_of(direction) gives the weights. The team divides what there is to pack.
  template <class WeightOf>
  void prepare(const Share& share, WeightOf weight_of) {
    for (int64_t d = 0; d < directions; ++d) weights[d] = static_cast<const storage*>(weight_of(d));
    if (reading != Reading::kPanels) return;
    const Range range = share.of(directions * panels);
    for (int64_t i = range.begin; i < range.end; ++i)
      for (int64_t k = 0; k < padded; k += kDepthBlock) pack(kept_at(i, k), i / panels, i % panels, k);
  }

  // finish(r, sums, column), sums[i] = column + i of x W for row r, as many as a panel has and the matrix: for all
  // r < count and the panels of `range` of direction d.
  template <class RowOf, class Finish>
  FUSEDLSTM_INLINE void multiply(int64_t d, Range range, int64_t count, RowOf row_of, Finish finish) const {
    if (count == 0) return;
    if constexpr (K::kDepth == 1) {
      if (reading == Reading::kInPlace) return multiply_in_place(d, range, count, row_of, finish);
    }
    for (int64_t p = range.begin; p < range.end; ++p)
      panel_product<K>(
          count, columns - p * K::kPanel, padded, row_of, [&](int64_t k) FUSEDLSTM_LAMBDA { return panel_of(d, p, k); },
          sums, [&](int64_t r, const acc* row) FUSEDLSTM_LAMBDA { finish(r, row, p * K::kPanel); });
  }

 private:
  static constexpr int64_t kStripBytes = 8 << 10;                 // of sums in place: a quarter of the innermost cache
  static constexpr int kTerms = 4;                                // rows of the weight that are added at once
  static constexpr int kTermRows = K::Isa::kDirectSums / kTerms;  // for so many rows x

  const int64_t directions, depth, padded, columns, rows;
  const storage* weights[2];
  operand* kept;   // by the team: [directions][panels] of `padded`
  operand* panel;  // of this share: the one in use
  acc* sums;       // of this share: partial ones

  operand* kept_at(int64_t i, int64_t k) const { return kept + (i * padded + k) * K::kPanel; }

  // The panel of the block of depth that begins at k.
  void pack(operand* to, int64_t d, int64_t p, int64_t k) const {
    const int64_t n = padded - k < kDepthBlock ? padded - k : kDepthBlock;
    pack_columns<K>(
        to, [&](int64_t row) FUSEDLSTM_LAMBDA { return weights[d] + (k + row) * columns; }, {0, n}, depth - k, n,
        columns, p * K::kPanel);
  }

  const operand* panel_of(int64_t d, int64_t p, int64_t k) const {
    if (reading == Reading::kPanels) return kept_at(d * panels + p, k);
    pack(panel, d, p, k);
    return panel;
  }

  // Panels whose sums are in the cache together.
  static int64_t strip_panels(int64_t count) {
    const int64_t n = kStripBytes / (K::kPanel * int64_t(sizeof(acc)) * (count > 0 ? count : 1));
    return n > 1 ? n : 1;
  }

  template <class RowOf, class Finish>
  FUSEDLSTM_INLINE void multiply_in_place(int64_t d, Range range, int64_t count, RowOf row_of, Finish finish) const {
    const int64_t at_once = strip_panels(count);
    for (int64_t p = range.begin; p < range.end; p += at_once) {
      const int64_t end = p + at_once < range.end ? p + at_once : range.end, first = p * K::kPanel;
      const int64_t ld = (end - p) * K::kPanel, wanted = columns - first < ld ? columns - first : ld;
      acc* part = sums + count * ld;
      for (int64_t k = 0; k < depth; k += kBackwardStretch) {
        const int64_t stop = k + kBackwardStretch < depth ? k + kBackwardStretch : depth;
        add_stretch(d, {k, stop}, count, row_of, {first, first + wanted}, k == 0 ? sums : part, ld);
        for (int64_t i = 0; k > 0 && i < count * ld; i += K::kLanes) add(sums + i, load<V>(part + i));
      }
      for (int64_t r = 0; r < count; ++r)
        for (int64_t q = p; q < end; ++q) finish(r, sums + r * ld + (q - p) * K::kPanel, q * K::kPanel);
    }
  }

  // to[r][c] = sum over the k of a stretch of x[r][k] W[k][c].
  template <class RowOf>
  void add_stretch(int64_t d, Range stretch, int64_t count, RowOf row_of, Range wanted, acc* to, int64_t ld) const {
    const auto add_rows = [&](int64_t k, auto terms) FUSEDLSTM_LAMBDA {
      constexpr int kSome = terms;
      const storage* weight = weights[d] + k * columns + wanted.begin;
      const bool starts = k == stretch.begin;
      const auto add_row = [&](int64_t r, auto some_rows) FUSEDLSTM_LAMBDA {
        constexpr int kRows = some_rows;
        V x[kRows][kSome];
        for (int i = 0; i < kRows; ++i)
          for (int j = 0; j < kSome; ++j) x[i][j] = K::Product::template broadcast<V>(row_of(r + i) + k + j);
        for (int64_t c = 0; c < wanted.end - wanted.begin; c += K::kLanes) {
          V w[kSome];
          for (int j = 0; j < kSome; ++j) w[j] = K::load(weight + j * columns + c, wanted.end - wanted.begin - c);
          for (int i = 0; i < kRows; ++i) {
            acc* at = to + (r + i) * ld + c;
            V sum = starts ? V{} : load<V>(at);
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
