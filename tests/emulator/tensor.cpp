// Tensor core operations: fragments gathered by PTX's layouts, sums in double, one rounding.
#include <cstring>

#include "emulator.h"

namespace emulator {
namespace {

float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// Element `half` (0, 1) of a register, as the unit reads it.
float element(MmaKind kind, uint32_t word, int half) {
  const uint32_t bits = word >> (16 * half) & 0xFFFF;
  if (kind == MmaKind::kTf32) return from_bits(word & 0xFFFFE000);  // cut off, not rounded: round_to_tf32 is due
  if (kind == MmaKind::kBf16) return from_bits(bits << 16);
  const uint16_t bits16 = static_cast<uint16_t>(bits);
  _Float16 x;
  std::memcpy(&x, &bits16, 2);
  return static_cast<float>(x);
}

}  // namespace

void compute_mma(MmaKind kind, void* const* lanes) {
  const int per_register = kind == MmaKind::kTf32 ? 1 : 2;
  const int k_per_register = 4 * per_register;  // one register of the 4 lanes of a row
  const int k_registers = kind == MmaKind::kF16K8 ? 1 : 2;
  float a[16][16] = {}, b[16][8] = {};
  auto lane = [&](int l) { return static_cast<MmaOperands*>(lanes[l]); };
  for (int l = 0; l < 32; ++l) {
    const int group = l / 4, in_group = l % 4;
    for (int r = 0; r < k_registers; ++r)
      for (int half = 0; half < per_register; ++half) {
        const int k = r * k_per_register + in_group * per_register + half;
        a[group][k] = element(kind, lane(l)->a[2 * r], half);
        a[group + 8][k] = element(kind, lane(l)->a[2 * r + 1], half);
        b[k][group] = element(kind, lane(l)->b[r], half);
      }
  }
  for (int l = 0; l < 32; ++l)
    for (int i = 0; i < 4; ++i) {
      const int row = l / 4 + (i & 2 ? 8 : 0), column = l % 4 * 2 + (i & 1);
      double sum = lane(l)->d[i];
      for (int k = 0; k < k_registers * k_per_register; ++k) sum += double(a[row][k]) * b[k][column];
      lane(l)->d[i] = static_cast<float>(sum);
    }
}

}  // namespace emulator
