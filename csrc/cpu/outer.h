// Sums over rows, as weight gradients are: d_weight[n][m] = sum over rows k of right[k][n] * left[k][m].
//
// The wide side (gate gradients, n) is brought into panels by whole vectors, the narrow side (inputs or hidden states,
// m) into tiles; both for a block of rows that stays in the cache. Sums are kept in `acc` over all rows and rounded
// once. A column of ones on the left gives the bias gradient in the same pass, and several left matrices share the
// panels of the right one.
#pragma once

#include "pack.h"
#include "row_index.h"

namespace fusedlstm::cpu {

inline constexpr int64_t kOuterDepth = 256;    // rows k of a block, at most
inline constexpr int64_t kOuterStretch = 32;   // of them, in one running sum: see kForwardStretch
inline constexpr int64_t kOuterColumns = 240;  // columns m of a block, a multiple of every tile height

template <class K, int kLefts>
class Outer {
 public:
  using V = typename K::V;
  using acc = typename K::acc;
  using operand = typename K::operand;
  using storage = typename K::storage;

  // One left matrix: its width, and whether there are products with it and with a column of ones.
  struct Left {
    int64_t width;
    bool has_weight, has_bias;
    int64_t columns() const { return (has_weight ? width : 0) + (has_bias ? 1 : 0); }
  };
  // Where they go: d_weight [columns, width], d_bias [columns].
  struct Result {
    storage *d_weight, *d_bias;
  };
  // Rows of one block, by pointer.
  struct Block {
    int64_t depth = 0;
    const storage* left[kLefts][kOuterDepth];
    const operand* right[kOuterDepth];
  };

  const int64_t columns, panels;  // of the right matrix

  Outer(int64_t columns, const Left (&lefts)[kLefts])
      : columns(columns), panels(round_up(columns, K::kPanel) / K::kPanel), ld(panels * K::kPanel) {
    for (int i = 0; i < kLefts; ++i) all += (this->lefts[i] = lefts[i]).columns();
  }

  // `sets` sets of sums, and scratch of `shares` shares for `own_panels` at a time; this is number `share`.
  void lay_out(Arena& arena, int64_t sets, int64_t own_panels, int64_t shares, int64_t share) {
    constexpr int64_t kTiles = kOuterColumns * kOuterDepth + 2 * K::kPanel;
    const int64_t packed = own_panels * kOuterDepth * K::kPanel;
    tiles = arena.take<operand>(shares * kTiles) + share * kTiles;
    packed_right = arena.take<operand>(shares * packed) + share * packed;
    sums = arena.take<acc>(sets * all * ld);
  }

  // Adds a block to the sums of a set, for the panels of `range`. The `first` block of a set starts it, and may be
  // empty.
  void accumulate(int64_t set, Range range, const Block& block, bool first) const {
    if (all == 0) return;
    for (int64_t k = 0; k < block.depth; k += K::kDepth)  // whole rows in turn: they lie together
      for (int64_t p = range.begin; p < range.end; ++p)
        pack_columns<K, typename K::OperandStorage>(
            packed_right + (p - range.begin) * kOuterDepth * K::kPanel + k * K::kPanel,
            [&](int64_t next) { return block.right[k + next]; },
            block.depth - k < K::kDepth ? block.depth - k : K::kDepth, columns, p * K::kPanel);
    acc* to = sums + set * all * ld;
    for (int i = 0; i < kLefts; ++i) {
      accumulate_left(to, range, block.left[i], block.depth, lefts[i], first);
      to += lefts[i].columns() * ld;
    }
  }

  // Adds up the sets set .. set + sets - 1 and writes the columns of `range` of all results.
  void write(int64_t set, int64_t sets, Range range, const Result (&results)[kLefts]) const {
    acc* from = sums + set * all * ld;
    for (int64_t other = 1; other < sets; ++other)
      for (int64_t m = 0; m < all; ++m)
        for (int64_t n = range.begin * K::kPanel; n < range.end * K::kPanel; n += K::kLanes)
          add(from + m * ld + n, cpu::load<V>(from + (other * all + m) * ld + n));
    for (int i = 0; i < kLefts; ++i) {
      write_left(from, range, lefts[i], results[i]);
      from += lefts[i].columns() * ld;
    }
  }

 private:
  const int64_t ld;
  Left lefts[kLefts];
  int64_t all = 0;                // left columns, the ones included
  operand *tiles, *packed_right;  // of this share
  acc* sums;                      // [sets][all][ld]

  // to[m][n] += sum over the rows k of a block of left[k][m] * right[k][n].
  void accumulate_left(acc* to, Range range, const storage* const* left, int64_t depth, const Left& shape,
                       bool first) const {
    const int64_t width = shape.has_weight ? shape.width : 0, lefts = shape.columns();
    const int64_t padded = round_up(depth, K::kDepth);
    for (int64_t m0 = 0; m0 < lefts; m0 += kOuterColumns) {
      const int64_t count = lefts - m0 < kOuterColumns ? lefts - m0 : kOuterColumns;
      for_each_tile<K>(count, [&](int64_t m, auto rows) FUSEDLSTM_LAMBDA {
        pack_tile<rows>(tiles + m * kOuterDepth, left, depth, m0 + m, width);
      });
      for (int64_t p = range.begin; p < range.end; ++p) {
        const operand* panel = packed_right + (p - range.begin) * kOuterDepth * K::kPanel;
        for_panel_width<K>(columns - p * K::kPanel, [&](auto width) FUSEDLSTM_LAMBDA {
          for_each_tile<K>(count, [&](int64_t m, auto rows) FUSEDLSTM_LAMBDA {
            constexpr int kRows = rows, kVectors = width;
            Tile<typename K::Isa, typename K::Product, kRows, kVectors> tile;
            const operand* x[kRows];
            for (int r = 0; r < kRows; ++r) x[r] = tiles + m * kOuterDepth + r * K::kDepth;
            acc* sum = to + (m0 + m) * ld + p * K::kPanel;
            // Blocks are summed from zero and then added up: fewer roundings at the size of the whole sum. Sums of
            // large weights come from memory; they are on their way while the block is summed.
            for (int r = 0; r < kRows; ++r)
              for (int q = 0; q < kVectors; ++q) __builtin_prefetch(sum + r * ld + q * K::kLanes, 1);
            multiply<typename K::Isa, typename K::Product, kRows, kRows, kVectors>(tile, x, panel, padded,
                                                                                   kOuterStretch);
            for (int r = 0; r < kRows; ++r)
              for (int q = 0; q < kVectors; ++q) {
                acc* at = sum + r * ld + q * K::kLanes;
                cpu::store(at, first ? tile.v[r][q] : tile.v[r][q] + cpu::load<V>(at));
              }
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
  void write_left(const acc* from, Range range, const Left& shape, const Result& to) const {
    const int64_t width = shape.has_weight ? shape.width : 0;
    for (int64_t n = range.begin * K::kPanel; n < range.end * K::kPanel && n < columns; n += K::kLanes) {
      const int64_t lanes = columns - n < K::kLanes ? columns - n : K::kLanes;
      for (int64_t m = 0; m < width; m += K::kLanes) {
        V v[K::kLanes] = {};
        for (int64_t i = 0; i < K::kLanes && m + i < width; ++i) v[i] = cpu::load<V>(from + (m + i) * ld + n);
        transpose<K>(v);
        for (int64_t l = 0; l < lanes; ++l) K::store(to.d_weight + (n + l) * width + m, v[l], width - m);
      }
      if (shape.has_bias) K::store(to.d_bias + n, cpu::load<V>(from + width * ld + n), lanes);
    }
  }
};

}  // namespace fusedlstm::cpu
