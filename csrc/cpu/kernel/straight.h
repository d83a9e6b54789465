// Products with a weight as forward has them: W x for rows x, all columns of the result side by side.
#pragma once

#include "pack.h"
#include "row_index.h"

namespace fusedlstm::cpu {

// One weight [columns, depth] of a dtype that is multiplied as it is stored, brought into panels before the first
// product. transposed.h has the way back.
template <class K>
class Straight {
 public:
  using acc = typename K::acc;
  using operand = typename K::operand;
  static_assert(std::is_same_v<operand, typename K::storage> && K::kDepth == 1);

  const int64_t panels;  // what a team divides
  const int64_t width;   // elements of a row of the result, padded

  Straight(int64_t columns, int64_t depth)
      : panels(round_up(columns, K::kPanel) / K::kPanel), width(panels * K::kPanel), columns(columns), depth(depth) {}

  void lay_out(Arena& arena) { packed = arena.take<operand>(width * depth); }

  // The team divides what there is to pack.
  FUSEDLSTM_NOINLINE void prepare(const Share& share, const void* weight) {
    const Range own = share.of(panels);
    for (int64_t p = own.begin; p < own.end; ++p)
      for (int q = 0; q < kPanelVectors; ++q) {
        const int64_t first = p * K::kPanel + q * K::kLanes;
        const operand* from[K::kLanes];
        for (int l = 0; l < K::kLanes; ++l)
          from[l] = first + l < columns ? static_cast<const operand*>(weight) + (first + l) * depth : nullptr;
        pack_rows<K>(panel(p) + K::panel_at(kPanelVectors, depth, 0, q), from, depth, K::kLanes * depth,
                     K::panel_at(kPanelVectors, depth, K::kDepth, 0));
      }
  }

  // to[r * width + column] = the sum over k of x(r)[k] W[column][k], for all rows r < count and the panels of `range`.
  // longest: of a stretch (product.h).
  template <class RowOf>
  FUSEDLSTM_INLINE void multiply(acc* to, Range range, int64_t count, int64_t longest, RowOf x) const {
    for (int64_t p = range.begin; p < range.end; ++p)
      for_each_tile<K::kTileRows>(count, [&](int64_t r, int rows) FUSEDLSTM_LAMBDA {
        const operand* at[K::kTileRows];
        for (int i = 0; i < rows; ++i) at[i] = x(r + i);
        cpu::multiply<typename K::Isa, typename K::Product>(
            {to + r * width + p * K::kPanel, width, at, panel(p), depth, longest}, rows,
            vectors_of<K>(columns - p * K::kPanel));
      });
  }

 private:
  const int64_t columns, depth;
  operand* packed;  // by the team

  operand* panel(int64_t p) const { return packed + p * K::kPanel * depth; }
};

}  // namespace fusedlstm::cpu
