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
template <MmaKind kKind>
float element(uint32_t word, int half) {
  const uint32_t bits = word >> (16 * half) & 0xFFFF;
  if (kKind == MmaKind::kTf32) return from_bits(word & 0xFFFFE000);  // cut off, not rounded: round_to_tf32 is due
  if (kKind == MmaKind::kBf16) return from_bits(bits << 16);
  const uint16_t bits16 = static_cast<uint16_t>(bits);
  _Float16 x;
  std::memcpy(&x, &bits16, 2);
  return static_cast<float>(x);
}

}  // namespace

template <MmaKind kKind>
void compute_mma(void* const* lanes) {
  constexpr int per_register = kKind == MmaKind::kTf32 ? 1 : 2;
  constexpr int k_per_register = 4 * per_register;  // one register of the 4 lanes of a row
  constexpr int k_registers = kKind == MmaKind::kF16K8 ? 1 : 2;
  constexpr int rows = 16, columns = 8;
  double a[rows][k_registers * k_per_register], b[k_registers * k_per_register][columns];
  auto lane = [&](int l) { return static_cast<MmaOperands*>(lanes[l]); };
  for (int l = 0; l < 32; ++l) {
    const int group = l / 4, in_group = l % 4;
    for (int r = 0; r < k_registers; ++r)
      for (int half = 0; half < per_register; ++half) {
        const int k = r * k_per_register + in_group * per_register + half;
        a[group][k] = element<kKind>(lane(l)->a[2 * r], half);
        a[group + 8][k] = element<kKind>(lane(l)->a[2 * r + 1], half);
        b[k][group] = element<kKind>(lane(l)->b[r], half);
      }
  }
  for (int row = 0; row < rows; ++row) {
    const auto d = [&](int column) -> float& { return lane(row % 8 * 4 + column / 2)->d[row / 8 * 2 + column % 2]; };
    double sums[columns];
    for (int column = 0; column < columns; ++column) sums[column] = d(column);
    for (int k = 0; k < k_registers * k_per_register; ++k)
      for (int column = 0; column < columns; ++column) sums[column] += a[row][k] * b[k][column];
    for (int column = 0; column < columns; ++column) d(column) = static_cast<float>(sums[column]);
  }
}

template void compute_mma<MmaKind::kBf16>(void* const*);
template void compute_mma<MmaKind::kF16>(void* const*);
template void compute_mma<MmaKind::kF16K8>(void* const*);
template void compute_mma<MmaKind::kTf32>(void* const*);

}  // namespace emulator
