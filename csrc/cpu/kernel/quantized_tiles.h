// Products of bytes by the tile registers of AMX: 16 rows by 16 units and 64 k in one instruction.
#pragma once

#include "quantized_product.h"

#if defined(__AMX_INT8__)
namespace fusedlstm::cpu {

struct QuantizedAvx512Amx : QuantizedAvx512Vnni {};

// The instructions take the numbers of registers as constants; the compiler's own functions only literals.
template <int kTile>
FUSEDLSTM_INLINE void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
template <int kTile>
FUSEDLSTM_INLINE void load_tile(const int8_t* from, int64_t pitch) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(kTile), "r"(from), "r"(pitch) : "memory");
}
template <int kTile>
FUSEDLSTM_INLINE void store_tile(int32_t (*to)[kQuantizedUnits]) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(kTile), "r"(to), "r"(sizeof *to) : "memory");
}
// sum += x * w, of unsigned and of signed bytes.
template <int kSum, int kX, int kW>
FUSEDLSTM_INLINE void dot_tiles() {
  asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kX), "i"(kW));
}

// Reads 16 rows, whatever their number: an instruction takes the same time for fewer of them. Results of those that do
// not exist are of whatever bytes lie there, and nobody reads them.
template <>
class ByteProducts<QuantizedAvx512Amx> {
 public:
  static constexpr int kMaxRows = 16, kMaxPanels = 4, kRowsRead = 16;

  ByteProducts() = default;
  ByteProducts(const ByteProducts&) = delete;
  ByteProducts& operator=(const ByteProducts&) = delete;
  ~ByteProducts() {
    if (tail >= 0) asm volatile("tilerelease" ::: "memory");
  }

  // `to` has room for kMaxPanels panels of kMaxRows rows.
  template <int kPanels>
  void multiply(const ByteFactors& f, int rows) {
    if (rows >= kLeastRows) return multiply_tile<kPanels>(f);
    multiply_byte_rows<QuantizedAvx512Amx, kPanels>(f, rows);
  }

 private:
  static constexpr int kLeastRows = 4;  // from here on, tiles are faster
  static constexpr int kSums = 4;       // tiles 0 .. 3: as many as hide the latency of `dot_tiles`
  static constexpr int kX = 4, kW = 5, kTailX = 6, kTailW = 7;
  static constexpr int64_t kGroups = 16;  // of k, in a tile

  int64_t tail = -1;  // groups in the tail's tiles; -1: no tile has a shape

  struct Shapes {
    uint8_t palette = 1, first_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};  // of a row
    uint8_t rows[16] = {};
  };

  void shape_tiles(int64_t wanted) {
    if (tail >= 0 && (wanted == 0 || wanted == tail)) return;
    tail = wanted;
    Shapes shapes;
    for (int tile = 0; tile <= kW; ++tile) {
      shapes.bytes[tile] = 64;
      shapes.rows[tile] = 16;
    }
    if (tail > 0) {
      shapes.bytes[kTailX] = uint16_t(tail * kByteDepth);
      shapes.rows[kTailX] = 16;
      shapes.bytes[kTailW] = 64;
      shapes.rows[kTailW] = uint8_t(tail);
    }
    static_assert(sizeof shapes == 64);
    asm volatile("ldtilecfg %0" ::"m"(shapes));
  }

  // Sums kFirst .. of the panels += products of the k from `group` on.
  template <int kFirst, int kPanels, int kX, int kW>
  static FUSEDLSTM_INLINE void add_products(const ByteFactors& f, int64_t group) {
    load_tile<kX>(f.rows + group * kByteDepth, f.width);
    add_panels<kFirst, kPanels, kX, kW>(f, group);
  }
  template <int kFirst, int kPanels, int kX, int kW, int kPanel = 0>
  static FUSEDLSTM_INLINE void add_panels(const ByteFactors& f, int64_t group) {
    if constexpr (kPanel < kPanels) {
      constexpr int64_t kPitch = kQuantizedUnits * kByteDepth;
      load_tile<kW>(f.panel(kPanel) + group * kPitch, kPitch);
      dot_tiles<kFirst + kPanel, kX, kW>();
      add_panels<kFirst, kPanels, kX, kW, kPanel + 1>(f, group);
    }
  }

  template <int kPanels>
  FUSEDLSTM_NOINLINE void multiply_tile(const ByteFactors& f) {
    static_assert(kPanels == 1 || kPanels > kSums / 2);
    shape_tiles(f.groups % kGroups);
    zero_tile<0>();
    zero_tile<1>();
    zero_tile<2>();
    zero_tile<3>();
    const int64_t whole = f.groups / kGroups * kGroups;
    int64_t g = 0;
    if constexpr (kPanels == 1) {  // four parts of k, summed apart
      for (; g + kSums * kGroups <= whole; g += kSums * kGroups) {
        add_products<0, 1, kX, kW>(f, g);
        add_products<1, 1, kX, kW>(f, g + kGroups);
        add_products<2, 1, kX, kW>(f, g + 2 * kGroups);
        add_products<3, 1, kX, kW>(f, g + 3 * kGroups);
      }
    }
    for (; g < whole; g += kGroups) add_products<0, kPanels, kX, kW>(f, g);
    if (g < f.groups) add_products<0, kPanels, kTailX, kTailW>(f, g);
    store_tile<0>(f.to);
    store_tile<1>(f.to + kMaxRows);
    store_tile<2>(f.to + 2 * kMaxRows);
    store_tile<3>(f.to + 3 * kMaxRows);
    if constexpr (kPanels == 1) {
      using Sums = QuantizedAvx512Amx::Sums;
      for (int r = 0; r < kMaxRows; ++r)
        for (int part = 1; part < kSums; ++part) add(f.to[r], load<Sums>(f.to[part * kMaxRows + r]));
    }
  }
};

}  // namespace fusedlstm::cpu
#endif
