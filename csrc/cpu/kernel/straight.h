// Products with a weight as forward has them: W x for rows x, all columns of the result side by side.
#pragma once

#include "direct.h"
#include "row_index.h"

namespace fusedlstm::cpu {

// One weight [columns, depth] of a dtype that is multiplied as it is stored, and how it is read:
//
//     kPanels   brought into panels before the first product
//     kOnce     each panel is packed into the same few kilobytes right before its only use
//     kInPlace  where it lies, for a handful of rows x: packing would cost more than the product
//
// transposed.h has the way back.
template <class K>
class Straight {
 public:
  using acc = typename K::acc;
  using operand = typename K::operand;
  static_assert(std::is_same_v<operand, typename K::storage> && K::kDepth == 1);

  enum class Reading : int { kPanels, kOnce, kInPlace };

  const int64_t panels;  // what a team divides
  const int64_t width;   // elements of a row of the result, padded

  // `is_met_once`: all of the weight by one product.
  static constexpr Reading reading_of(const Plan& plan, bool is_met_once) {
    return plan.direct ? Reading::kInPlace : is_met_once ? Reading::kOnce : Reading::kPanels;
  }

  // `rows` are the most in one product.
  Straight(int64_t columns, int64_t depth, int64_t rows, Reading reading)
      : panels(round_up(columns, K::kPanel) / K::kPanel),
        width(panels * K::kPanel),
        columns(columns),
        depth(depth),
        padded(round_up(depth, K::kLanes)),
        rows(rows),
        reading(reading) {}

  void lay_out(Arena& arena, int64_t shares, int64_t share) {
    const auto own = [&](int64_t n) { return arena.take<operand>(shares * n) + share * n; };
    kept = arena.take<operand>(reading == Reading::kPanels ? width * depth : 0);
    panel = own(reading == Reading::kOnce ? K::kPanel * depth : 0);
    staged = own(reading == Reading::kInPlace ? rows * padded : 0);
  }

  // Before the first product. The team divides what there is to pack.
  FUSEDLSTM_NOINLINE void prepare(const Share& share, const void* of_layer) {
    weight = static_cast<const operand*>(of_layer);
    if (reading != Reading::kPanels) return;
    const Range own = share.of(panels);
    for (int64_t p = own.begin; p < own.end; ++p) pack(kept_at(p), p);
  }

  // to[r * width + column] = the sum over k of x(r)[k] W[column][k], for all rows r < count and the panels of `range`.
  // longest: of a stretch (product.h).
  template <class RowOf>
  FUSEDLSTM_INLINE void multiply(acc* to, Range range, int64_t count, int64_t longest, RowOf x) const {
    if (reading == Reading::kInPlace) {
      for (int64_t r = 0; r < count; ++r) to_operands<K>(staged + r * padded, x(r), depth, padded);
      return multiply_in_place(to, range, count);
    }
    for (int64_t p = range.begin; p < range.end; ++p) {
      const operand* own = panel_of(p);
      for_each_tile<K::kTileRows>(count, [&](int64_t r, int tile) FUSEDLSTM_LAMBDA {
        const operand* at[K::kTileRows];
        for (int i = 0; i < tile; ++i) at[i] = x(r + i);
        cpu::multiply<typename K::Isa, typename K::Product>(
            {to + r * width + p * K::kPanel, width, at, own, depth, longest}, tile,
            vectors_of<K>(columns - p * K::kPanel));
      });
    }
  }

 private:
  const int64_t columns, depth, padded, rows;
  const Reading reading;
  const operand* weight;
  operand* kept;    // by the team
  operand* panel;   // of this share: the one in use
  operand* staged;  // of this share: the rows x, padded with zeros

  operand* kept_at(int64_t p) const { return kept + p * K::kPanel * depth; }

  FUSEDLSTM_NOINLINE void pack(operand* to, int64_t p) const {
    const int vectors = vectors_of<K>(columns - p * K::kPanel);
    for (int q = 0; q < vectors; ++q) {
      const int64_t first = p * K::kPanel + q * K::kLanes;
      const operand* from[K::kLanes];
      for (int l = 0; l < K::kLanes; ++l) from[l] = first + l < columns ? weight + (first + l) * depth : nullptr;
      pack_rows<K>(to + K::panel_at(vectors, depth, 0, q), from, depth, K::kLanes * depth,
                   K::panel_at(vectors, depth, K::kDepth, 0));
    }
  }

  const operand* panel_of(int64_t p) const {
    if (reading == Reading::kPanels) return kept_at(p);
    pack(panel, p);
    return panel;
  }

  // Of the rows that are staged. All columns are of one gate, whose second operand has no depth.
  FUSEDLSTM_NOINLINE void multiply_in_place(acc* to, Range range, int64_t count) const {
    const int64_t first = range.begin * K::kPanel, end = range.end * K::kPanel;
    const DirectOperand<K> operands[2] = {{weight, staged, depth, padded}, {weight, staged, 0, padded}};
    direct_gates<K>(operands, columns, {first, end < columns ? end : columns}, count,
                    {1, 1, width, to + first, nullptr});
  }
};

}  // namespace fusedlstm::cpu
