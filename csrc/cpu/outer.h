// Weight gradients: products over all rows of a layer, d_weight[n][m] = sum over rows k of right[k][n] * left[k][m].
//
// The wide side (gate gradients, n) is brought into panels by whole vectors, the narrow side (inputs or hidden states,
// m) into tiles; both for a block of rows that stays in the cache. Sums are kept in `acc` over all rows and rounded
// once. A column of ones on the left gives the bias gradient in the same pass, and several left matrices share the
// panels of the right one. Each share owns a range of panels.
#pragma once

#include "pack.h"
#include "row_index.h"

namespace fusedlstm::cpu {

inline constexpr int64_t kOuterDepth = 256;    // rows k of a block
inline constexpr int64_t kOuterColumns = 240;  // columns m of a block, a multiple of every tile height

template <class K>
class Outer {
 public:
  using V = typename K::V;
  using acc = typename K::acc;
  using operand = typename K::operand;
  using storage = typename K::storage;

  // One left matrix and where its products go: d_weight [columns, width] or null, d_bias [columns] or null.
  struct Left {
    int64_t width;
    storage *d_weight, *d_bias;
    int64_t columns() const { return (d_weight ? width : 0) + (d_bias ? 1 : 0); }
  };

  // Scratch of `shares` shares for up to `columns` right columns and `lefts` left columns (ones included) in all; this
  // one begins at `share`.
  void lay_out(Arena& arena, int64_t columns, int64_t lefts, int64_t shares, int64_t share) {
    constexpr int64_t kTiles = kOuterColumns * kOuterDepth + 2 * K::kPanel;
    const int64_t panels = (round_up(columns, K::kPanel) / K::kPanel + shares - 1) / shares;
    const int64_t right = panels * kOuterDepth * K::kPanel, sum = lefts * panels * K::kPanel;
    tiles = arena.take<operand>(shares * kTiles) + share * kTiles;
    block = arena.take<operand>(shares * right) + share * right;
    sums = arena.take<acc>(shares * sum) + share * sum;
  }

  // left_row(i, k): row k of the i-th left matrix, storage; right_row(k): row k of the right matrix, operands.
  template <int kLefts, class LeftRow, class RightRow>
  void run(Share share, int64_t rows, const Left (&lefts)[kLefts], LeftRow left_row, RightRow right_row,
           int64_t columns) const {
    const Range panels = share.of(round_up(columns, K::kPanel) / K::kPanel);
    const int64_t ld = (panels.end - panels.begin) * K::kPanel;
    int64_t all = 0;
    for (const Left& left : lefts) all += left.columns();
    if (ld == 0 || all == 0) return;
    __builtin_memset(sums, 0, size_t(all * ld) * sizeof(acc));
    for (int64_t k0 = 0; k0 < rows; k0 += kOuterDepth) {
      const int64_t depth = rows - k0 < kOuterDepth ? rows - k0 : kOuterDepth;
      for (int64_t k = 0; k < depth; k += K::kDepth)  // whole rows in turn: they are read from memory
        for (int64_t p = panels.begin; p < panels.end; ++p)
          pack_columns<K, typename K::OperandStorage>(
              block + (p - panels.begin) * kOuterDepth * K::kPanel + k * K::kPanel,
              [&](int64_t next) { return right_row(k0 + k + next); }, depth - k < K::kDepth ? depth - k : K::kDepth,
              columns, p * K::kPanel);
      acc* to = sums;
      for (int i = 0; i < kLefts; ++i) {
        if (lefts[i].columns() == 0) continue;
        const storage* left[kOuterDepth];
        for (int64_t k = 0; k < depth; ++k) left[k] = left_row(i, k0 + k);
        accumulate(to, ld, columns - panels.begin * K::kPanel, left, depth, lefts[i]);
        to += lefts[i].columns() * ld;
      }
    }
    const acc* from = sums;
    for (const Left& left : lefts) {
      write(from, ld, panels.begin * K::kPanel, left, columns);
      from += left.columns() * ld;
    }
  }

 private:
  operand *tiles, *block;
  acc* sums;  // [left columns][panels of the share][kPanel]

  // to[m][n] += sum over the rows k of a block of left[k][m] * block[k][n].
  void accumulate(acc* to, int64_t ld, int64_t columns, const storage* const* left, int64_t depth,
                  const Left& shape) const {
    const int64_t width = shape.d_weight ? shape.width : 0, lefts = shape.columns();
    const int64_t padded = round_up(depth, K::kDepth);
    for (int64_t m0 = 0; m0 < lefts; m0 += kOuterColumns) {
      const int64_t count = lefts - m0 < kOuterColumns ? lefts - m0 : kOuterColumns;
      for_each_tile<K>(count, [&](int64_t m, auto rows) FUSEDLSTM_LAMBDA {
        pack_tile<rows>(tiles + m * kOuterDepth, left, depth, m0 + m, width);
      });
      for (int64_t n = 0; n < ld; n += K::kPanel) {
        const operand* panel = block + n * kOuterDepth;
        for_panel_width<K>(columns - n, [&](auto width) FUSEDLSTM_LAMBDA {
          for_each_tile<K>(count, [&](int64_t m, auto rows) FUSEDLSTM_LAMBDA {
            constexpr int kRows = rows, kVectors = width;
            Tile<typename K::Isa, typename K::Product, kRows, kVectors> tile;
            const operand* x[kRows];
            for (int r = 0; r < kRows; ++r) x[r] = tiles + m * kOuterDepth + r * K::kDepth;
            multiply<typename K::Isa, typename K::Product, kRows, kRows, kVectors, kOuterDepth / 2>(tile, x, panel,
                                                                                                    padded);
            // Blocks are summed from zero and then added up: fewer roundings at the size of the whole sum.
            acc* sum = to + (m0 + m) * ld + n;
            for (int r = 0; r < kRows; ++r)
              for (int q = 0; q < kVectors; ++q) add(sum + r * ld + q * K::kLanes, tile.v[r][q]);
          });
        });
      }
    }
  }

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

  // from [m][n] -> d_weight [n][m], transposed by squares of lanes; the column of ones -> d_bias.
  static void write(const acc* from, int64_t ld, int64_t n0, const Left& left, int64_t columns) {
    const int64_t width = left.d_weight ? left.width : 0;
    for (int64_t n = 0; n < ld && n0 + n < columns; n += K::kLanes) {
      const int64_t lanes = columns - n0 - n < K::kLanes ? columns - n0 - n : K::kLanes;
      for (int64_t m = 0; m < width; m += K::kLanes) {
        V v[K::kLanes] = {};
        for (int64_t i = 0; i < K::kLanes && m + i < width; ++i) v[i] = cpu::load<V>(from + (m + i) * ld + n);
        transpose<K>(v);
        for (int64_t l = 0; l < lanes; ++l) K::store(left.d_weight + (n0 + n + l) * width + m, v[l], width - m);
      }
      if (left.d_bias) K::store(left.d_bias + n0 + n, cpu::load<V>(from + width * ld + n), lanes);
    }
  }
};

}  // namespace fusedlstm::cpu
