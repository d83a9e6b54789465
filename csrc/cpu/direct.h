// Products for a handful of rows, with the weights where they are: bringing them into panels would cost more than the
// product itself. Used for single steps (decoding, reinforcement learning) and for very short sequences.
#pragma once

#include "pack.h"

namespace fusedlstm::cpu {

// Batch rows and hidden units of one pass: their sums, four gates each, must stay in registers.
template <class K>
inline constexpr int kDirectRows = K::kTileRows == 6 ? 4 : 2;
template <int kRows>
inline constexpr int kDirectUnits = kRows == 1 ? 2 : 1;

// The sum of all lanes, by folding the upper half onto the lower one.
template <class K>
FUSEDLSTM_INLINE typename K::acc sum_lanes(typename K::V v) {
  using Index = Vector<typename K::Isa, std::conditional_t<sizeof(typename K::acc) == 4, int32_t, int64_t>>;
#pragma GCC unroll 4
  for (int width = K::kLanes / 2; width >= 1; width /= 2) {
    Index upper{};
#pragma GCC unroll 16
    for (int l = 0; l < K::kLanes; ++l) upper[l] = (l + width) % K::kLanes;
    v += __builtin_shuffle(v, upper);
  }
  return v[0];
}

// One operand of the gates: weight [4 * units, depth] in storage, rows of operands padded to whole vectors with zeros.
template <class K>
struct DirectOperand {
  const typename K::storage* weight;
  const typename K::operand* rows;
  int64_t depth, stride;
};

// sums(row, gate, unit) = sum over both operands of weight[gate * units + unit] . row, for `kRows` rows from `row` on
// and `kUnits` hidden units from `unit` on. Accumulated as K::acc, one rounding per element.
template <class K, int kRows, int kUnits, class Store>
FUSEDLSTM_INLINE void direct_product(const DirectOperand<K> (&operands)[2], int64_t units, int64_t unit, int64_t row,
                                     Store to) {
  using V = typename K::V;
  V sums[kRows][kUnits][kPanelVectors] = {};
  for (const auto& x : operands) {
    for (int64_t k = 0; k < x.depth; k += K::kLanes * K::kDepth) {
      V a[kRows];
      for (int r = 0; r < kRows; ++r) a[r] = load<V>(x.rows + (row + r) * x.stride + k);
      for (int u = 0; u < kUnits; ++u)
        for (int gate = 0; gate < kPanelVectors; ++gate) {
          const V w = depth_vector<K>(x.weight + (gate * units + unit + u) * x.depth + k, x.depth - k);
          for (int r = 0; r < kRows; ++r) sums[r][u][gate] = K::Product::multiply_add(a[r], w, sums[r][u][gate]);
        }
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int u = 0; u < kUnits; ++u)
      for (int gate = 0; gate < kPanelVectors; ++gate) to(row + r, gate, unit + u, sum_lanes<K>(sums[r][u][gate]));
}

// All rows and the units of `range`.
template <class K, class Store>
void direct_gates(const DirectOperand<K> (&operands)[2], int64_t units, Range range, int64_t rows, Store to) {
  const auto tile = [&](int64_t row, auto count) FUSEDLSTM_LAMBDA {
    constexpr int kRows = count, kUnits = kDirectUnits<kRows>;
    int64_t u = range.begin;
    for (; u + kUnits <= range.end; u += kUnits) direct_product<K, kRows, kUnits>(operands, units, u, row, to);
    for (; u < range.end; ++u) direct_product<K, kRows, 1>(operands, units, u, row, to);
  };
  int64_t r = 0;
  for (; r + kDirectRows<K> <= rows; r += kDirectRows<K>) tile(r, std::integral_constant<int, kDirectRows<K>>{});
  if constexpr (kDirectRows<K> == 4) {
    if (rows - r == 3) tile(r, std::integral_constant<int, 3>{});
    if (rows - r == 2) tile(r, std::integral_constant<int, 2>{});
  }
  if (rows - r == 1) tile(r, std::integral_constant<int, 1>{});
}

}  // namespace fusedlstm::cpu
