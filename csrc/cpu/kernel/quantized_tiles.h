// Products of bytes by the tile registers of AMX.
#pragma once

#include "quantized_product.h"
#include "tile_registers.h"

#if defined(__AMX_INT8__)
namespace fusedlstm::cpu {

struct QuantizedAvx512Amx : QuantizedAvx512Vnni {};

template <>
class ByteProducts<QuantizedAvx512Amx> {
 public:
  static constexpr int kMaxRows = TileRegisters::kRows, kMaxPanels = TileRegisters::kSums;

  ByteProducts() = default;
  ByteProducts(const ByteProducts&) = delete;
  ByteProducts& operator=(const ByteProducts&) = delete;
  ~ByteProducts() { registers.release(); }

  template <int kPanels>
  void multiply(const ByteFactors& f, int rows) {
    if (rows < TileRegisters::kLeastRows) return multiply_byte_rows<QuantizedAvx512Amx, kPanels>(f, rows);
    constexpr int64_t kPitch = TileRegisters::kRowBytes;
    static_assert(kPitch == kQuantizedUnits * kByteDepth && kPitch == sizeof *f.to);
    multiply_tile<DotBytes, int32_t, kPanels>(
        registers,
        {reinterpret_cast<const char*>(f.rows), f.width, reinterpret_cast<const char*>(f.panels), kPitch,
         f.groups * kPitch, f.groups, reinterpret_cast<char*>(f.to), kPitch, f.to_rows * kPitch},
        rows);
  }

 private:
  TileRegisters registers;
};

}  // namespace fusedlstm::cpu
#endif
