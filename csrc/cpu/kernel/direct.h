// Products for a handful of rows, with the weights where they are: bringing them into panels would cost more than the
// product itself. Used for single steps (decoding, reinforcement learning) and for very short sequences.
#pragma once

#include "pack.h"

namespace fusedlstm::cpu {

// Hidden units of one gate whose sums a pass keeps in registers, for kRows batch rows.
template <class K, int kRows>
inline constexpr int kDirectUnits = K::kLanes < K::Isa::kDirectSums / kRows ? K::kLanes : K::Isa::kDirectSums / kRows;

// Lane u: the sum of all lanes of v[u], for u < kCount. Vectors are added in pairs that leave every other lane to one
// of them, until one is left. kApart, of the lanes that are added next, is a constant to the compiler, since shuffles
// by constants are single instructions.
template <class K, int kApart = 1, int kCount>
FUSEDLSTM_INLINE typename K::V sum_lanes(typename K::V (&v)[kCount]) {
  using Index = Vector<typename K::Isa, std::conditional_t<sizeof(typename K::acc) == 4, int32_t, int64_t>>;
  constexpr int kLanes = K::kLanes;
  if constexpr (kApart == kLanes) {
    return v[0];
  } else {
    Index low{}, high{};
#pragma GCC unroll 16
    for (int l = 0; l < kLanes; ++l) {
      low[l] = l & kApart ? kLanes + l - kApart : l;
      high[l] = l & kApart ? kLanes + l : l + kApart;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kCount; i += 2 * kApart) {
      const auto a = v[i], b = v[kApart < kCount ? i + kApart : i];
      v[i] = __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);
    }
    return sum_lanes<K, 2 * kApart>(v);
  }
}

// One operand of the gates: weight [gates * units, depth] in storage, rows of operands padded to whole vectors with
// zeros.
template <class K>
struct DirectOperand {
  const typename K::storage* weight;
  const typename K::operand* rows;
  int64_t depth, stride;
};

// Where the sums go, of some units of each gate: over both operands for one of the first `joined` gates; of the others
// those over the second operand, and over the first to `apart`. Rows of `to` have `gates` times `width` elements, those
// of `apart` as many as its gates have.
template <class K>
struct DirectSums {
  int gates, joined;
  int64_t width;
  typename K::acc *to, *apart;

  typename K::acc* at(int64_t row, int part, int gate) const {
    return part == 1 ? to + (row * gates + gate) * width : apart + (row * (gates - joined) + gate - joined) * width;
  }
};

// For `kRows` rows from `row` on and the first kUnits, if there are as many, of the hidden units of `range`; a gate has
// `units`, and the first that sums have room for is `first`. Accumulated as K::acc, one rounding per element.
template <class K, int kRows, int kUnits>
FUSEDLSTM_INLINE void direct_product(const DirectOperand<K> (&operands)[2], int64_t units, Range range, int64_t first,
                                     int64_t row, const DirectSums<K>& sums_of) {
  using V = typename K::V;
  constexpr int64_t kStep = K::kLanes * K::kDepth;
  const int64_t unit = range.begin, count = range.end - range.begin;
  for (int gate = 0; gate < sums_of.gates; ++gate) {
    V sums[kRows][kUnits];
    for (int part = 0; part < 2; ++part) {
      if (part == 0 || gate >= sums_of.joined)
        for (auto& of_row : sums)
          for (V& sum : of_row) sum = V{};
      const auto& x = operands[part];
      const typename K::storage* weights[kUnits];
      for (int u = 0; u < kUnits; ++u)  // those beyond `count` repeat the last one
        weights[u] = x.weight + (gate * units + unit + (u < count ? u : count - 1)) * x.depth;
      const auto add = [&](int64_t k, int64_t n) FUSEDLSTM_LAMBDA {
        V a[kRows];
        for (int r = 0; r < kRows; ++r) a[r] = load<V>(x.rows + (row + r) * x.stride + k);
#pragma GCC unroll 16
        for (int u = 0; u < kUnits; ++u) {
          // The rows of the next units lie behind those of all these: short stretches, which no processor foresees. One
          // row x alone is no slower than the memory, whose order of reading is then best left as it is.
          if constexpr (kRows > 1) __builtin_prefetch(weights[u] + k + kUnits * x.depth, 0, 2);
          const V w = depth_vector<K>(weights[u] + k, n);
          for (int r = 0; r < kRows; ++r) sums[r][u] = K::Product::multiply_add(a[r], w, sums[r][u]);
        }
      };
      int64_t k = 0;
      for (; k + kStep <= x.depth; k += kStep) add(k, kStep);
      if (k < x.depth) add(k, x.depth - k);
      if (part == 1 || gate >= sums_of.joined)
        for (int r = 0; r < kRows; ++r)
          store_some(sums_of.at(row + r, part, gate) + unit - first, sum_lanes<K>(sums[r]), count);
    }
  }
}

// All rows and the units of `range`.
template <class K>
FUSEDLSTM_NOINLINE void direct_gates(const DirectOperand<K> (&operands)[2], int64_t units, Range range, int64_t rows,
                                     const DirectSums<K>& sums) {
  const auto tile = [&](int64_t row, auto count) FUSEDLSTM_LAMBDA {
    constexpr int kRows = count, kUnits = kDirectUnits<K, kRows>;
    for (int64_t u = range.begin; u < range.end; u += kUnits)
      direct_product<K, kRows, kUnits>(operands, units, {u, range.end}, range.begin, row, sums);
  };
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) tile(r, std::integral_constant<int, 4>{});
  if (rows - r >= 2) {
    tile(r, std::integral_constant<int, 2>{});
    r += 2;
  }
  if (r < rows) tile(r, std::integral_constant<int, 1>{});
}

}  // namespace fusedlstm::cpu
