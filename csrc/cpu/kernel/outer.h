// Sums over rows, as weight gradients are: d_weight[n][m] = sum over rows k of left[k][n] * right[k][m].
//
// The left side (gate gradients, n) is brought into tiles, the right side (inputs or hidden states, m) into panels,
// both for a block of rows that stays in the cache; several right matrices share the tiles of the left one, and the
// bias gradients, the sums of its rows, are made on the way into them. Sums are kept in `acc` over all rows, in the
// gradient's own memory where that is its type, and rounded once.
//
// The left matrix may have columns for one right matrix only, before and behind those that all are multiplied by, as
// the gates that are apart have them (gradients.h): `apart` for the first one | joined | `apart` for the second one.
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

  // Where the sums of one direction go: for each right matrix d_weight [joined + apart, width], of which the last rows
  // are those of columns that are apart, and then for each d_bias [joined + apart]; null: unasked.
  struct Result {
    storage* of[2 * kRights];
  };
  // Rows of one block, by pointer.
  struct Block {
    int64_t depth = 0;
    const operand* left[kOuterDepth];
    const storage* right[kRights][kOuterDepth];
  };

  const int64_t tile_count;  // tiles of the left matrix's columns, which a team divides

  // `joined` and `apart` columns of the left matrix, `widths` of the right ones; `rows` are the most that any group has
  // in all. Each direction has sums of `groups` groups of rows. Rows that fit into one block come in one.
  FUSEDLSTM_NOINLINE Outer(int64_t joined, int64_t apart, const int64_t (&widths)[kRights], const Result (&results)[2],
                           int64_t directions, int64_t groups, int64_t rows)
      : tile_count(tiles_of<K::kTileRows>(joined) + 2 * tiles_of<K::kTileRows>(apart)),
        joined(joined),
        apart(apart),
        outputs(joined + apart),
        directions(directions),
        groups(groups),
        is_once(!kInPlace && groups == 1 && rows <= kOuterDepth),
        depth(round_up(rows < kOuterDepth ? rows : kOuterDepth, kDepthUnit)) {
    for (int d = 0; d < 2; ++d) this->results[d] = results[d];
    for (int i = 0; i < kRights; ++i) {
      this->widths[i] = widths[i];
      if (results[0].of[kRights + i]) all += outputs;
      if (!results[0].of[i]) continue;
      panels += panels_of(i);
      all += outputs * widths[i];
    }
  }

  FUSEDLSTM_NOINLINE void lay_out(Arena& arena, int64_t shares, int64_t share) {
    const int64_t own_tiles = all > 0 ? kOuterColumns * depth + 2 * K::kPanel : 0,
                  own_panels = panels * depth * K::kPanel;
    tiles = arena.take<operand>(shares * own_tiles) + share * own_tiles;
    packed_right = arena.take<operand>(shares * own_panels) + share * own_panels;
    sums = arena.take<acc>(is_once ? 0 : directions * (groups - kInPlace) * all);
  }

  // Adds a block to the sums of a group, for the tiles of `range`. The `first` block of a group starts them, and may be
  // empty.
  FUSEDLSTM_NOINLINE void accumulate(int64_t d, int64_t group, Range range, const Block& block, bool first) const {
    if (all == 0) return;
    const Sums sums = sums_of(d, group);
    if (block.depth > 0 && block.depth <= kFewRows) {
      for_each_segment(range, [&](Range own, const Segment& segment) {
        for_few_rows(int(block.depth),
                     [&](auto rows) FUSEDLSTM_LAMBDA { accumulate_few<rows>({d, sums, first, segment}, own, block); });
      });
      return;
    }
    operand* panel = packed_right;
    for (int i = 0; i < kRights; ++i) {
      if (!results[d].of[i]) continue;
      for (int64_t k = 0; k < block.depth; k += K::kDepth)  // whole rows in turn: they lie together
        for (int64_t p = 0; p < panels_of(i); ++p)
          pack_columns<K>(
              panel + p * depth * K::kPanel, [&](int64_t row) { return block.right[i][row]; }, {k, k + K::kDepth},
              block.depth, round_up(block.depth, K::kDepth), widths[i], p * K::kPanel);
      panel += panels_of(i) * depth * K::kPanel;
    }
    for_each_segment(range, [&](Range own, const Segment& segment) {
      for_each_tile<kOuterColumns>(own.end - own.begin, [&](int64_t n, int64_t count) {
        accumulate_columns({d, sums, first, segment}, {own.begin + n, own.begin + n + count}, block);
      });
    });
  }

  // Adds up the groups of a direction and writes a part of all results, that of the tiles of `range` in their number.
  FUSEDLSTM_NOINLINE void write(int64_t d, Range range) const {
    if (all == 0 || is_once || (kInPlace && groups == 1)) return;
    const auto [begin, end] = parts_of(outputs, range, tile_count);
    for (int i = 0; i < 2 * kRights; ++i) {
      storage* to = results[d].of[i];
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
  static constexpr int64_t kDepthUnit =
      kIsInterleaved ? K::kDepth : K::kLanes * K::kDepth;  // of rows: a tile has whole ones

  const int64_t joined, apart, outputs;  // columns of the left matrix; rows of a weight
  const int64_t directions, groups;
  const bool is_once;   // one block is all: its sums are the results, and rounded at once
  const int64_t depth;  // rows of a block that there is room for
  int64_t widths[kRights];
  Result results[2];
  int64_t panels = 0;             // of all right matrices that are asked for
  int64_t all = 0;                // elements of a group's sums
  operand *tiles, *packed_right;  // of this share
  acc* sums;                      // [directions][groups that have no other place][all]

  // A group's sums, in the order of results.
  struct Sums {
    acc* of[2 * kRights];
  };

  // Left columns that go the same way: which right matrices they are multiplied by; column n makes row n + shift of a
  // weight.
  struct Segment {
    bool takes[kRights];
    int64_t shift;
  };

  // Where a block goes: it starts the sums of a group, or is added to them.
  struct Target {
    int64_t d;
    Sums sums;
    bool first;
    Segment segment;
  };

  // Runs body(columns, segment) for those of the tiles of `range` that lie in one segment.
  template <class Body>
  void for_each_segment(Range range, Body body) const {
    const Segment segments[] = {{{true, false}, joined}, {{true, true}, -apart}, {{false, true}, -apart}};
    const int64_t sizes[] = {apart, joined, apart};
    int64_t column = 0, tile = 0;
    for (int i = 0; i < 3; ++i) {
      const int64_t tiles = tiles_of<K::kTileRows>(sizes[i]);
      const Range own{range.begin > tile ? range.begin - tile : 0, range.end < tile + tiles ? range.end - tile : tiles};
      if (own.begin < own.end) {
        const Range columns = parts_of(sizes[i], own, tiles);
        body(Range{column + columns.begin, column + columns.end}, segments[i]);
      }
      column += sizes[i];
      tile += tiles;
    }
  }

  // Of the sum i of a group the first `count` lanes from `at` on.
  FUSEDLSTM_INLINE void add_sum(const Target& to, int i, int64_t at, V sum, int64_t count) const {
    if (!kInPlace && is_once) return K::store(results[to.d].of[i] + at, sum, count);
    acc* own = to.sums.of[i] + at;
    store_some(own, to.first ? sum : load_some<V>(own, count) + sum, count);
  }

  int64_t panels_of(int i) const { return round_up(widths[i], K::kPanel) / K::kPanel; }

  Sums sums_of(int64_t d, int64_t group) const {
    Sums found;
    if constexpr (kInPlace) {
      if (group == 0) {
        for (int i = 0; i < 2 * kRights; ++i) found.of[i] = results[d].of[i];
        return found;
      }
    }
    acc* next = sums + (d * (groups - kInPlace) + group - kInPlace) * all;
    for (int i = 0; i < 2 * kRights; ++i) {
      found.of[i] = next;
      if (results[d].of[i]) next += outputs * (i < kRights ? widths[i] : 1);
    }
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
  void accumulate_few(const Target to, Range range, const Block& block) const {
    for (int i = 0; i < kRights; ++i) {
      if (!results[0].of[i] || !to.segment.takes[i]) continue;
      const int64_t width = widths[i];
      for (int64_t n = range.begin; n < range.end; ++n) {
        V x[kRows];
        const storage* right[kRows];  // as numbers of this loop: its stores might write to those of the block
        for (int k = 0; k < kRows; ++k) {
          x[k] = number_of(block.left[k] + n);
          right[k] = block.right[i][k];
        }
        const auto add = [&](int64_t m, int64_t count) FUSEDLSTM_LAMBDA {
          V sum{};
          for (int k = 0; k < kRows; ++k) sum = FullProduct<acc>::multiply_add(x[k], K::load(right[k] + m, count), sum);
          add_sum(to, i, (n + to.segment.shift) * width + m, sum, count);
        };
        int64_t m = 0;
        for (; m + K::kLanes <= width; m += K::kLanes) add(m, K::kLanes);  // whole vectors, known to be such
        if (m < width) add(m, width - m);
      }
    }
    for (int64_t n = range.begin; n < range.end; n += K::kLanes) {
      V sum{};
      for (int k = 0; k < kRows; ++k) sum += K::load_operand(block.left[k] + n, range.end - n);
      add_bias(to, n, sum, range.end - n);
    }
  }

  // One operand as a number, in all lanes.
  static FUSEDLSTM_INLINE V number_of(const operand* x) {
    if constexpr (K::kDepth == 1) {
      return FullProduct<acc>::template broadcast<V>(x);
    } else {
      return bits<V>(Vector<typename K::Isa, uint32_t>{} + (uint32_t(*x) << 16));
    }
  }

  void accumulate_columns(const Target& to, Range range, const Block& block) const {
    const int64_t count = range.end - range.begin, padded = round_up(block.depth, K::kDepth);
    for_each_tile<K::kTileRows>(count, [&](int64_t n, int rows) FUSEDLSTM_LAMBDA {
      if constexpr (kIsInterleaved)
        pack_tile(tiles + n * depth, rows, block, range.begin + n, to);
      else
        pack_tile_rows(tiles + n * depth, rows, block, range.begin + n, to);
    });
    // As many panels at a time as one block of full depth has in one: they stay in the innermost cache, and the rows of
    // a sum of few terms are written along.
    const int64_t at_once = block.depth > 0 ? kOuterDepth / block.depth : kOuterDepth;
    const operand* panel = packed_right;
    for (int i = 0; i < kRights; ++i) {
      if (!results[0].of[i]) continue;
      for (int64_t p = 0; p < panels_of(i) && to.segment.takes[i]; p += at_once) {
        const Range some{p, p + at_once < panels_of(i) ? p + at_once : panels_of(i)};
        for_each_tile<K::kTileRows>(count, [&](int64_t n, int rows) FUSEDLSTM_LAMBDA {
          for (int64_t q = some.begin; q < some.end; ++q)
            add_tile(to, i, range.begin + n, rows, q * K::kPanel, tiles + n * depth, panel + q * depth * K::kPanel,
                     padded);
        });
      }
      panel += panels_of(i) * depth * K::kPanel;
    }
  }

  // Of right matrix i: sums[first_row + r][m ..] += sum over k of tile[k][r] * panel[k].
  FUSEDLSTM_INLINE void add_tile(const Target& to, int i, int64_t first_row, int rows, int64_t m, const operand* tile,
                                 const operand* panel, int64_t padded) const {
    const int64_t width = widths[i], first_sum = (first_row + to.segment.shift) * width + m;
    const int vectors = vectors_of<K>(width - m);
    const operand* x[K::kTileRows];
    for (int r = 0; r < rows; ++r) x[r] = tile + r * (kIsInterleaved ? K::kDepth : depth);
    const auto sum_up = [&](acc* sums, int64_t apart) FUSEDLSTM_LAMBDA {
      multiply<typename K::Isa, typename K::Product, kIsInterleaved>({sums, apart, x, panel, padded, kOuterStretch},
                                                                     rows, vectors);
    };
    // Sums that begin have nothing to be added to: tiles leave whole panels of them where they go.
    if (to.first && (kInPlace || !is_once) && width - m >= K::kPanel) return sum_up(to.sums.of[i] + first_sum, width);
    // Blocks are summed from zero and then added up: fewer roundings at the size of the whole sum. Sums of large
    // weights come from memory; they are on their way while the block is summed.
    if (!to.first)
      for (int r = 0; r < rows; ++r)
        for (int q = 0; q < vectors; ++q) __builtin_prefetch(to.sums.of[i] + first_sum + r * width + q * K::kLanes, 1);
    alignas(64) acc sums[K::kTileRows * K::kPanel];
    sum_up(sums, K::kPanel);
    for (int r = 0; r < rows; ++r)
      for (int64_t q = 0; q < K::kPanel && m + q < width; q += K::kLanes)
        add_sum(to, i, first_sum + r * width + q, load<V>(sums + r * K::kPanel + q), width - m - q);
  }

  // tile[k][r] (pairs: [k / 2][r][2]) = left[k][n + r], and the sums over k are added to the bias gradient. Each store
  // is a whole vector whose surplus lanes the next one overwrites; the last surplus lies in the slack after the tiles.
  FUSEDLSTM_INLINE void pack_tile(operand* tile, int rows, const Block& block, int64_t n, const Target& to) const {
    constexpr int kVectors = (K::kTileRows + K::kLanes - 1) / K::kLanes;
    V totals[kVectors] = {};
    for (int64_t begin = 0; begin < block.depth; begin += kBiasStretch) {
      const int64_t end = begin + kBiasStretch < block.depth ? begin + kBiasStretch : block.depth;
      V sums[kVectors] = {};
      for (int64_t k = begin; k < end; k += K::kDepth)
        for (int q = 0; q < kVectors && q * K::kLanes < rows; ++q) {
          const V v = columns_at(block, k, n + q * K::kLanes);
          cpu::store(tile + k * rows + q * K::kLanes * K::kDepth, v);
          sums[q] += sum_of_depth<K>(v);
        }
      for (int q = 0; q < kVectors; ++q) totals[q] += sums[q];
    }
    for (int q = 0; q < kVectors && q * K::kLanes < rows; ++q)
      add_bias(to, n + q * K::kLanes, totals[q], rows - q * K::kLanes);
  }

  // The same with a row for each column n, as tile registers read them: tile[r][k] = left[k][n + r], and zeros up to
  // whole vectors.
  FUSEDLSTM_INLINE void pack_tile_rows(operand* tile, int rows, const Block& block, int64_t n, const Target& to) const {
    for (int first = 0; first < rows; first += K::kLanes) {
      const int count = rows - first < K::kLanes ? rows - first : K::kLanes;
      V total{};
      for (int64_t begin = 0; begin < block.depth; begin += kDepthUnit) {
        V v[K::kLanes], sums[kDepthUnit / kBiasStretch] = {};
        for (int i = 0; i < K::kLanes; ++i) {
          const int64_t k = begin + i * K::kDepth;
          v[i] = k < block.depth ? columns_at(block, k, n + first) : V{};
          sums[i * K::kDepth / kBiasStretch] += sum_of_depth<K>(v[i]);
        }
        for (const V& sum : sums) total += sum;
        transpose<K>(v);
        for (int r = 0; r < count; ++r) cpu::store(tile + (first + r) * depth + begin, v[r]);
      }
      add_bias(to, n + first, total, count);
    }
  }

  // Columns n .. of row k of the left matrix, of pairs with those of row k + 1.
  FUSEDLSTM_INLINE V columns_at(const Block& block, int64_t k, int64_t n) const {
    const bool pair = K::kDepth == 2 && k + 1 < block.depth;
    return column_vector<K, typename K::OperandStorage>(block.left[k] + n, pair ? block.left[k + 1] + n : nullptr,
                                                        joined + 2 * apart - n);
  }

  FUSEDLSTM_INLINE void add_bias(const Target& to, int64_t n, V sum, int64_t count) const {
    for (int i = 0; i < kRights; ++i)
      if (results[0].of[kRights + i] && to.segment.takes[i]) add_sum(to, kRights + i, n + to.segment.shift, sum, count);
  }
};

}  // namespace fusedlstm::cpu
