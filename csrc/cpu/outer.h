// Weight gradients: products over all rows of a layer, d_weight[n][m] = sum over rows k of right[k][n] * left[k][m].
//
// The wide side (gate gradients, n) is brought into panels by whole vectors, the narrow side (inputs or hidden states,
// m) into tiles; both for a block of rows that stays in the cache. Sums are kept in `acc` over all rows and rounded
// once. A column of ones on the left gives the bias gradient in the same pass. Each share owns a range of panels.
#pragma once

#include "pack.h"
#include "row_index.h"

namespace fusedlstm::cpu {

inline constexpr int64_t kOuterDepth = 256;    // rows k of a block
inline constexpr int64_t kOuterColumns = 240;  // columns m of a block, a multiple of every tile height

template <class K>
struct Outer {
  using V = typename K::V;
  using acc = typename K::acc;
  using operand = typename K::operand;
  using storage = typename K::storage;

  static int64_t max_panels(int64_t columns, int64_t shares) {
    const int64_t panels = round_up(columns, K::kPanel) / K::kPanel;
    return (panels + shares - 1) / shares;
  }

  struct Scratch {
    operand *tiles, *panel;
    acc* sums;  // [kOuterColumns][panels of the share][kPanel]
  };
  static Scratch take(Arena& arena, int64_t columns, int64_t shares, int64_t share) {
    constexpr int64_t kTiles = kOuterColumns * kOuterDepth + 2 * K::kPanel, kPanel = kOuterDepth * K::kPanel;
    const int64_t sums = kOuterColumns * max_panels(columns, shares) * K::kPanel;
    return {arena.take<operand>(shares * kTiles) + share * kTiles, arena.take<operand>(shares * kPanel) + share * kPanel,
            arena.take<acc>(shares * sums) + share * sums};
  }

  // left_row(k): storage row of `width` elements; right_row(k): operand row of `columns` elements.
  // d_weight [columns, width]; d_bias [columns] or null.
  template <class LeftRow, class RightRow>
  static void run(Scratch scratch, Share share, int64_t rows, LeftRow left_row, int64_t width, RightRow right_row,
                  int64_t columns, storage* d_weight, storage* d_bias) {
    const Range panels = share.of(round_up(columns, K::kPanel) / K::kPanel);
    const int64_t ld = (panels.end - panels.begin) * K::kPanel;
    if (ld == 0) return;
    const int64_t lefts = width + (d_bias ? 1 : 0);
    for (int64_t m0 = 0; m0 < lefts; m0 += kOuterColumns) {
      const int64_t m1 = m0 + kOuterColumns < lefts ? m0 + kOuterColumns : lefts;
      __builtin_memset(scratch.sums, 0, size_t((m1 - m0) * ld) * sizeof(acc));
      for (int64_t k0 = 0; k0 < rows; k0 += kOuterDepth) {
        const int64_t depth = rows - k0 < kOuterDepth ? rows - k0 : kOuterDepth;
        const int64_t padded = round_up(depth, K::kDepth);
        const storage* left[kOuterDepth];
        for (int64_t k = 0; k < depth; ++k) left[k] = left_row(k0 + k);
        for_each_tile<K>(m1 - m0, [&](int64_t m, auto count) FUSEDLSTM_LAMBDA {
          pack_tile<count>(scratch.tiles + m * kOuterDepth, left, depth, m0 + m, width);
        });
        for (int64_t p = panels.begin; p < panels.end; ++p) {
          using S = typename K::OperandStorage;
          pack_columns<K, S>(scratch.panel, [&](int64_t k) { return right_row(k0 + k); }, depth, columns, p * K::kPanel);
          acc* sums = scratch.sums + (p - panels.begin) * K::kPanel;
          for_each_tile<K>(m1 - m0, [&](int64_t m, auto count) FUSEDLSTM_LAMBDA {
            constexpr int kRows = count;
            Tile<typename K::Isa, typename K::Product, kRows> tile;
            const operand* x[kRows];
            for (int r = 0; r < kRows; ++r) {
              x[r] = scratch.tiles + m * kOuterDepth + r * K::kDepth;
              for (int q = 0; q < kPanelVectors; ++q) tile.v[r][q] = cpu::load<V>(sums + (m + r) * ld + q * K::kLanes);
            }
            multiply<typename K::Isa, typename K::Product, kRows, kRows>(tile, x, scratch.panel, padded);
            for (int r = 0; r < kRows; ++r)
              for (int q = 0; q < kPanelVectors; ++q) cpu::store(sums + (m + r) * ld + q * K::kLanes, tile.v[r][q]);
          });
        }
      }
      write(scratch.sums, ld, panels.begin * K::kPanel, m0, m1, width, columns, d_weight, d_bias);
    }
  }

 private:
  // tile[k][r] (pairs: [k / 2][r][2]) = left[k][m + r]. Each store is a whole vector whose surplus lanes the next
  // one overwrites; the last surplus lies in the slack after the tiles.
  template <int kRows>
  static FUSEDLSTM_INLINE void pack_tile(operand* tile, const storage* const* left, int64_t depth, int64_t m,
                                         int64_t width) {
    using S = typename K::Storage;
    storage one[1];
    K::store(one, V{} + acc(1), 1);
    for (int64_t k = 0; k < depth; k += K::kDepth) {
      const bool pair = K::kDepth == 2 && k + 1 < depth;
      for (int64_t r = 0; r < kRows; r += K::kLanes) {
        const int64_t n = width - m - r;  // columns of the matrix from here on; then the column of ones
        V v{};
        if (n > 0) v = column_vector<K, S>(left[k] + m + r, pair ? left[k + 1] + m + r : nullptr, n);
        if (n >= 0 && n < K::kLanes) v[n] = column_vector<K, S>(one, pair ? one : nullptr, 1)[0];
        cpu::store(tile + k * kRows + r * K::kDepth, v);
      }
    }
  }

  // sums [m][n] -> d_weight [n][m], transposed by squares of lanes; the column of ones -> d_bias.
  static void write(const acc* sums, int64_t ld, int64_t n0, int64_t m0, int64_t m1, int64_t width, int64_t columns,
                    storage* d_weight, storage* d_bias) {
    for (int64_t n = 0; n < ld && n0 + n < columns; n += K::kLanes) {
      const int64_t lanes = columns - n0 - n < K::kLanes ? columns - n0 - n : K::kLanes;
      for (int64_t m = m0; m < m1 && m < width; m += K::kLanes) {
        V v[K::kLanes] = {};
        for (int64_t i = 0; i < K::kLanes && m + i < m1; ++i) v[i] = cpu::load<V>(sums + (m - m0 + i) * ld + n);
        transpose<K>(v);
        const int64_t valid = (m1 < width ? m1 : width) - m;
        for (int64_t l = 0; l < lanes; ++l) K::store(d_weight + (n0 + n + l) * width + m, v[l], valid);
      }
      if (d_bias && m1 == width + 1) K::store(d_bias + n0 + n, cpu::load<V>(sums + (width - m0) * ld + n), lanes);
    }
  }
};

}  // namespace fusedlstm::cpu
