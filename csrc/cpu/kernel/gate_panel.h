// How the gates of some hidden units lie in a panel, in the sums of a tile and in biases: the only place that knows.
//
// A *block* is as many units as one panel has the gates of. Of four or three gates that is one vector of units, gate by
// gate; of a cell with one gate four vectors of units. The last block is *folded* where it has so few units that
// several gates fit into one vector: `fold` of them side by side, lanes / fold units each. It then takes a fraction of
// the multiply-adds, and as many rows as gates share the vectors of the cell update.
#pragma once

#include "cells/sizes.h"
#include "pack.h"

namespace fusedlstm::cpu {

template <class K, CellSizes kSizes>
struct GatePanel {
  static constexpr int kGates = kSizes.gates;
  static constexpr int kApart = kSizes.apart();
  static constexpr int kUnitVectors = kGates == 1 ? kPanelVectors : 1;  // of each gate
  static constexpr int kUnits = kUnitVectors * K::kLanes;               // of a block
  static constexpr int kWidth = kGates * kUnits;                        // sums of a block and row
  static constexpr int kFolds = 4;                                      // at most
  static constexpr int kTileRows = tile_rows<typename K::Isa>(kGates * kUnitVectors);
  static_assert(kGates * kUnitVectors <= kPanelVectors && (kUnitVectors == 1 || kApart == 0));

  // How many gates are side by side in a vector of a block that has `units`.
  static constexpr int fold_of(int64_t units) {
    if (kUnitVectors > 1 || units > K::kLanes / 2) return 1;
    return K::kLanes < kFolds || units > K::kLanes / 4 ? 2 : 4;
  }
  // Vectors of sums of a block that has `units`.
  static constexpr int vectors_of(int64_t units) {
    if (kUnitVectors > 1) return cpu::vectors_of<K>(units);
    const int fold = fold_of(units);
    return (kGates + fold - 1) / fold;
  }
  // Operands of the panels of one direction's weight: whole blocks have as many vectors as sums for each k, the last
  // one may have more.
  static constexpr int64_t panels_size(int64_t blocks, int64_t depth) {
    return blocks > 0 ? ((blocks - 1) * kWidth + K::kPanel) * depth : 0;
  }

  // panel[k][vector][lane] = weight[gate * units + unit][k], zero beyond `units` (a padded unit then stays exactly 0)
  // and beyond `depth`. Vector q has gate q, or the gates from q * fold on; of one gate, vector q of its units.
  FUSEDLSTM_NOINLINE static void pack(typename K::operand* panel, const typename K::storage* weight, int64_t units,
                                      int64_t depth, int64_t unit) {
    constexpr int kLanes = K::kLanes;
    const int fold = fold_of(units - unit), vectors = vectors_of(units - unit), of_gate = kLanes / fold;
    const int64_t padded = round_up(depth, K::kDepth);
    const int64_t pitch = K::panel_at(vectors, padded, K::kDepth, 0);  // from one group of k to the next
    for (int q = 0; q < vectors; ++q) {
      const typename K::storage* from[kLanes] = {};
      for (int j = 0; j < fold; ++j) {
        const int gate = kUnitVectors > 1 ? 0 : q * fold + j;
        const int64_t first = unit + (kUnitVectors > 1 ? q * kLanes : 0);
        for (int u = 0; u < of_gate && first + u < units && gate < kGates; ++u)
          from[j * of_gate + u] = weight + (gate * units + first + u) * depth;
      }
      // The rows of the next vector are on their way from memory: of the next gate, or the next block's first.
      const int64_t to_next = kUnitVectors > 1 ? kLanes : q + 1 < vectors ? units : kLanes - (vectors - 1) * units;
      pack_rows<K>(panel + K::panel_at(vectors, padded, 0, q), from, depth, to_next * depth, pitch);
    }
  }

  // The sums of a block are arranged as its gates are: bias[gate][unit] becomes as many vectors as there are sums.
  static void arrange(typename K::acc* to, const typename K::acc* bias, int64_t units) {
    typename K::V v[kPanelVectors];
    for (int q = 0; q < kPanelVectors; ++q)
      v[q] = q < kGates * kUnitVectors ? load<typename K::V>(bias + q * K::kLanes) : typename K::V{};
    for_fold<K>(fold_of(units), [&](auto fold) {
      for (int q = 0; q < kPanelVectors / fold; ++q) store(to + q * K::kLanes, side_by_side<K, fold>(v + q * fold));
    });
  }
};

}  // namespace fusedlstm::cpu
