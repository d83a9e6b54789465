// Sums over rows, as weight gradients are: d_weight[n][m] = sum over rows k of left[k][n] * right[k][m].
//
// The left side (gate gradients, n) is brought into tiles, the right side (inputs or hidden states, m) into panels,
// both for a block of rows that stays in the cache; several right matrices share the tiles of the left one, and the
// bias gradient, the sum of its rows, is made on the way into them. Sums are kept in `acc` over all rows, in the
// gradient's own memory where that is its type, and rounded once.
#pragma once

#include "pack.h"
#include "row_index.h"

namespace fusedlstm::cpu {

inline constexpr int64_t kOuterDepth = 256;   // rows k of a block, at most
inline constexpr int64_t kOuterStretch = 32;  // of them, in one running sum: see kForwardStretch
inline constexpr int64_t kBiasStretch = 16;   // the same of a bias gradient
inline constexpr int kFewRows = 4;            // that are added as they are
inline constexpr int kOuterColumns = 240;     // columns n of a block, at most

template <class K>
class Outer {
 public:
  using V = typename K::V;
  using acc = typename K::acc;
  using operand = typename K::operand;
  using storage = typename K::storage;

  static constexpr int kRights = 2;  // right matrices, at most

  // Where the sums of one direction go: d_weight [columns, width] for each right matrix, d_bias [columns]; null:
  // unasked.
  struct Result {
    storage *d_weight[kRights], *d_bias;
  };
  // Rows of one block, by pointer.
  struct Block {
    int64_t depth = 0;
    const operand* left[kOuterDepth];
    const storage* right[kRights][kOuterDepth];
  };

  const int64_t tile_count;  // tiles of the left matrix's columns, which a team divides

  // `columns` of the left matrix, `widths` of the right ones; `rows` are the most that any group has in all. Each
  // direction has sums of `groups` groups of rows.
  FUSEDLSTM_NOINLINE Outer(int64_t columns, const int64_t (&widths)[kRights], const Result (&results)[2],
                           int64_t directions, int64_t groups, int64_t rows)
      : tile_count(tiles_of<K::kTileRows>(columns)),
        columns(columns),
        directions(directions),
        groups(groups),
        depth(round_up(rows < kOuterDepth ? rows : kOuterDepth, kDepthUnit)) {
    for (int d = 0; d < 2; ++d) this->results[d] = results[d];
    for (int i = 0; i < kRights; ++i) {
      this->widths[i] = widths[i];
      if (!results[0].d_weight[i]) continue;
      panels += panels_of(i);
      all += columns * widths[i];
    }
    if (results[0].d_bias) all += columns;
  }

  FUSEDLSTM_NOINLINE void lay_out(Arena& arena, int64_t shares, int64_t share) {
    const int64_t own_tiles = all > 0 ? kOuterColumns * depth + 2 * K::kPanel : 0,
                  own_panels = panels * depth * K::kPanel;
    tiles = arena.take<operand>(shares * own_tiles) + share * own_tiles;
    packed_right = arena.take<operand>(shares * own_panels) + share * own_panels;
    sums = arena.take<acc>(directions * (groups - kInPlace) * all);
  }

  // Adds a block to the sums of a group, for the tiles of `range`. The `first` block of a group starts them, and may be
  // empty.
  FUSEDLSTM_NOINLINE void accumulate(int64_t d, int64_t group, Range range, const Block& block, bool first) const {
    if (all == 0) return;
    if constexpr (K::kDepth == 1) {
      if (block.depth > 0 && block.depth <= kFewRows) {
        for_few_rows(int(block.depth), [&](auto rows) FUSEDLSTM_LAMBDA {
          accumulate_few<rows>(sums_of(d, group), columns_of(range), block, first);
        });
        return;
      }
    }
    operand* panel = packed_right;
    for (int i = 0; i < kRights; ++i) {
      if (!results[d].d_weight[i]) continue;
      for (int64_t k = 0; k < block.depth; k += K::kDepth)  // whole rows in turn: they lie together
        for (int64_t p = 0; p < panels_of(i); ++p)
          pack_columns<K>(
              panel + p * depth * K::kPanel, [&](int64_t row) { return block.right[i][row]; }, {k, k + K::kDepth},
              block.depth, round_up(block.depth, K::kDepth), widths[i], p * K::kPanel);
      panel += panels_of(i) * depth * K::kPanel;
    }
    const Range own = columns_of(range);
    for_each_tile<kOuterColumns>(own.end - own.begin, [&](int64_t n, int64_t count) {
      accumulate_columns(sums_of(d, group), {own.begin + n, own.begin + n + count}, block, first);
    });
  }

  // Adds up the groups of a direction and writes the tiles of `range` of all results.
  FUSEDLSTM_NOINLINE void write(int64_t d, Range range) const {
    if (all == 0 || (kInPlace && groups == 1)) return;
    const auto [begin, end] = columns_of(range);
    for (int i = 0; i <= kRights; ++i) {
      storage* to = i < kRights ? results[d].d_weight[i] : results[d].d_bias;
      const int64_t width = i < kRights ? widths[i] : 1;
      if (!to) continue;
      for (int64_t at = begin * width; at < end * width; at += K::kLanes) {
        const int64_t n = end * width - at;
        V total{};
        for (int64_t group = 0; group < groups; ++group) total += load_some<V>(sums_of(d, group).of[i] + at, n);
        K::store(to + at, total, n);
      }
    }
  }

 private:
  static constexpr bool kInPlace = std::is_same_v<storage, acc>;  // the first group of a direction has its sums there

  static constexpr bool kIsInterleaved = !kHasTiles<typename K::Isa>;  // how a tile of left columns lies
  static constexpr int64_t kDepthUnit = kIsInterleaved ? K::kDepth : K::kLanes * K::kDepth;  // of that are whole

  const int64_t columns, directions, groups;
  const int64_t depth;  // rows of a block that there is room for
  int64_t widths[kRights];
  Result results[2];
  int64_t panels = 0;             // of all right matrices that are asked for
  int64_t all = 0;                // elements of a group's sums
  operand *tiles, *packed_right;  // of this share
  acc* sums;                      // [directions][groups that have no other place][all]

  // A group's sums: for each right matrix, and of the bias.
  struct Sums {
    acc* of[kRights + 1];
  };

  Range columns_of(Range tiles) const { return tile_count > 0 ? parts_of(columns, tiles, tile_count) : Range{0, 0}; }
  int64_t panels_of(int i) const { return round_up(widths[i], K::kPanel) / K::kPanel; }

  Sums sums_of(int64_t d, int64_t group) const {
    Sums found;
    if constexpr (kInPlace) {
      if (group == 0) {
        for (int i = 0; i < kRights; ++i) found.of[i] = results[d].d_weight[i];
        found.of[kRights] = results[d].d_bias;
        return found;
      }
    }
    acc* next = sums + (d * (groups - kInPlace) + group - kInPlace) * all;
    for (int i = 0; i < kRights; ++i) {
      found.of[i] = next;
      if (results[d].d_weight[i]) next += columns * widths[i];
    }
    found.of[kRights] = next;
    return found;
  }

  // Runs body(rows as a constant), of 1 .. kFewRows.
  template <class Body>
  static FUSEDLSTM_INLINE void for_few_rows(int rows, Body body) {
    if (rows == 1) return body(std::integral_constant<int, 1>{});
    if (rows == 2) return body(std::integral_constant<int, 2>{});
    if (rows == 3) return body(std::integral_constant<int, 3>{});
    body(std::integral_constant<int, kFewRows>{});
  }

  // A block of kRows rows, without tiles and panels: little more than writing the sums.
  template <int kRows>
  void accumulate_few(const Sums& to, Range range, const Block& block, bool first) const {
    for (int i = 0; i < kRights; ++i) {
      if (!results[0].d_weight[i]) continue;
      const int64_t width = widths[i];
      for (int64_t n = range.begin; n < range.end; ++n) {
        V x[kRows];
        for (int k = 0; k < kRows; ++k) x[k] = K::Product::template broadcast<V>(block.left[k] + n);
        for (int64_t m = 0; m < width; m += K::kLanes) {
          V sum{};
          for (int k = 0; k < kRows; ++k)
            sum = K::Product::multiply_add(x[k], K::load(block.right[i][k] + m, width - m), sum);
          acc* at = to.of[i] + n * width + m;
          store_some(at, first ? sum : load_some<V>(at, width - m) + sum, width - m);
        }
      }
    }
    if (!results[0].d_bias) return;
    for (int64_t n = range.begin; n < range.end; n += K::kLanes) {
      V sum{};
      for (int k = 0; k < kRows; ++k) sum += load_some<V>(block.left[k] + n, range.end - n);
      acc* at = to.of[kRights] + n;
      store_some(at, first ? sum : load_some<V>(at, range.end - n) + sum, range.end - n);
    }
  }

  void accumulate_columns(const Sums& to, Range range, const Block& block, bool first) const {
    const int64_t count = range.end - range.begin, padded = round_up(block.depth, K::kDepth);
    acc* bias = results[0].d_bias ? to.of[kRights] : nullptr;
    for_each_tile<K::kTileRows>(count, [&](int64_t n, int rows) FUSEDLSTM_LAMBDA {
      if constexpr (kIsInterleaved)
        pack_tile(tiles + n * depth, rows, block.left, block.depth, range.begin + n, bias, first);
      else
        pack_tile_rows(tiles + n * depth, rows, block.left, block.depth, range.begin + n, bias, first);
    });
    // As many panels at a time as one block of full depth has in one: they stay in the innermost cache, and the rows of
    // a sum of few terms are written along.
    const int64_t at_once = block.depth > 0 ? kOuterDepth / block.depth : kOuterDepth;
    const operand* panel = packed_right;
    for (int i = 0; i < kRights; ++i) {
      if (!results[0].d_weight[i]) continue;
      for (int64_t p = 0; p < panels_of(i); p += at_once) {
        const Range some{p, p + at_once < panels_of(i) ? p + at_once : panels_of(i)};
        for_each_tile<K::kTileRows>(count, [&](int64_t n, int rows) FUSEDLSTM_LAMBDA {
          for (int64_t q = some.begin; q < some.end; ++q)
            add_tile(to.of[i] + (range.begin + n) * widths[i], rows, widths[i], q * K::kPanel, tiles + n * depth,
                     panel + q * depth * K::kPanel, padded, first);
        });
      }
      panel += panels_of(i) * depth * K::kPanel;
    }
  }

  // to[r][m ..] += sum over k of tile[k][r] * panel[k].
  FUSEDLSTM_INLINE void add_tile(acc* to, int rows, int64_t width, int64_t m, const operand* tile, const operand* panel,
                                 int64_t padded, bool first) const {
    const int vectors = vectors_of<K>(width - m);
    const operand* x[K::kTileRows];
    for (int r = 0; r < rows; ++r) x[r] = tile + r * (kIsInterleaved ? K::kDepth : depth);
    // Blocks are summed from zero and then added up: fewer roundings at the size of the whole sum. Sums of large
    // weights come from memory; they are on their way while the block is summed.
    if (!first)
      for (int r = 0; r < rows; ++r)
        for (int q = 0; q < vectors; ++q) __builtin_prefetch(to + r * width + m + q * K::kLanes, 1);
    alignas(64) acc sums[K::kTileRows * K::kPanel];
    multiply<typename K::Isa, typename K::Product, kIsInterleaved>({sums, K::kPanel, x, panel, padded, kOuterStretch},
                                                                   rows, vectors);
    for (int r = 0; r < rows; ++r)
      for (int64_t i = 0; i < K::kPanel && m + i < width; i += K::kLanes) {
        const V sum = load<V>(sums + r * K::kPanel + i);
        acc* at = to + r * width + m + i;
        store_some(at, first ? sum : load_some<V>(at, width - m - i) + sum, width - m - i);
      }
  }

  // tile[k][r] (pairs: [k / 2][r][2]) = left[k][n + r], and the sums over k are added to bias[n + r]. Each store is a
  // whole vector whose surplus lanes the next one overwrites; the last surplus lies in the slack after the tiles.
  FUSEDLSTM_INLINE void pack_tile(operand* tile, int rows, const operand* const* left, int64_t depth, int64_t n,
                                  acc* bias, bool first) const {
    constexpr int kVectors = (K::kTileRows + K::kLanes - 1) / K::kLanes;
    V totals[kVectors] = {};
    for (int64_t begin = 0; begin < depth; begin += kBiasStretch) {
      const int64_t end = begin + kBiasStretch < depth ? begin + kBiasStretch : depth;
      V sums[kVectors] = {};
      for (int64_t k = begin; k < end; k += K::kDepth)
        for (int q = 0; q < kVectors && q * K::kLanes < rows; ++q) {
          const V v = columns_at(left, depth, k, n + q * K::kLanes);
          cpu::store(tile + k * rows + q * K::kLanes * K::kDepth, v);
          sums[q] += sum_of_depth<K>(v);
        }
      for (int q = 0; q < kVectors; ++q) totals[q] += sums[q];
    }
    for (int q = 0; q < kVectors && q * K::kLanes < rows && bias; ++q)
      add_bias(bias + n + q * K::kLanes, totals[q], rows - q * K::kLanes, first);
  }

  // The same with a row for each column n, as tile registers read them: tile[r][k] = left[k][n + r], and zeros up to
  // whole vectors.
  FUSEDLSTM_INLINE void pack_tile_rows(operand* tile, int rows, const operand* const* left, int64_t depth, int64_t n,
                                       acc* bias, bool first) const {
    for (int r = 0; r < rows; r += K::kLanes)
      pack_lanes(tile + r * this->depth, rows - r, left, depth, n + r, bias, first);
  }
  FUSEDLSTM_INLINE void pack_lanes(operand* tile, int rows, const operand* const* left, int64_t depth, int64_t n,
                                   acc* bias, bool first) const {
    if (rows > K::kLanes) rows = K::kLanes;
    V total{};
    for (int64_t begin = 0; begin < depth; begin += kDepthUnit) {
      V v[K::kLanes], sums[kDepthUnit / kBiasStretch] = {};
      for (int i = 0; i < K::kLanes; ++i) {
        const int64_t k = begin + i * K::kDepth;
        v[i] = k < depth ? columns_at(left, depth, k, n) : V{};
        sums[i * K::kDepth / kBiasStretch] += sum_of_depth<K>(v[i]);
      }
      for (const V& sum : sums) total += sum;
      transpose<K>(v);
      for (int r = 0; r < rows; ++r) cpu::store(tile + r * this->depth + begin, v[r]);
    }
    if (bias) add_bias(bias + n, total, rows, first);
  }

  // Columns n .. of row k of the left matrix, of pairs with those of row k + 1.
  FUSEDLSTM_INLINE V columns_at(const operand* const* left, int64_t depth, int64_t k, int64_t n) const {
    const bool pair = K::kDepth == 2 && k + 1 < depth;
    return column_vector<K, typename K::OperandStorage>(left[k] + n, pair ? left[k + 1] + n : nullptr, columns - n);
  }

  static FUSEDLSTM_INLINE void add_bias(acc* to, V sum, int64_t count, bool first) {
    store_some(to, first ? sum : sum + load_some<V>(to, count), count);
  }
};

}  // namespace fusedlstm::cpu
