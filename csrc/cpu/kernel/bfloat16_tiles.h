// Products of bfloat16 by the tile registers of AMX: included by cpu/instances/products_avx512_amx.cpp only.
#pragma once

#include "multiplying.h"
#include "pack.h"
#include "tile.h"

namespace fusedlstm::cpu {

// For 1 .. 16 rows.
inline void multiply_one_tile(TileRegisters& registers, const TileFactors& f, int rows, int vectors) {
  switch (vectors) {
    case 1:
      return multiply_tile<DotBFloat16, float, 1>(registers, f, rows);
    case 2:
      return multiply_tile<DotBFloat16, float, 2>(registers, f, rows);
    case 3:
      return multiply_tile<DotBFloat16, float, 3>(registers, f, rows);
    case 4:
      return multiply_tile<DotBFloat16, float, 4>(registers, f, rows);
  }
}

// Of rows that are equally far from each other. Sums have no stretches: the instruction takes all of k at a rate that
// they would halve, and their roundings are small beside those of bfloat16.
inline void multiply_tile_rows(const Factors<Dot2Product>& f, int rows, int vectors) {
  using V = AccVector<Avx512Amx, Dot2Product>;
  constexpr int64_t kL = kLanes<Avx512Amx, Dot2Product>, kVectorBytes = TileRegisters::kRowBytes;
  const TileFactors tile{
      .rows = reinterpret_cast<const char*>(f.rows[0]),
      .row_pitch = reinterpret_cast<const char*>(f.rows[1]) - reinterpret_cast<const char*>(f.rows[0]),
      .weights = reinterpret_cast<const char*>(f.panel),
      .group_pitch = strip_vectors<Avx512Amx>(vectors) * kVectorBytes,
      .vector_pitch = kVectorBytes,
      .groups = f.depth / Dot2Product::kDepth,
      .to = reinterpret_cast<char*>(f.to),
      .to_pitch = f.ld * int64_t(sizeof *f.to),
      .to_vector_pitch = kVectorBytes,
  };
  TileRegisters& registers = Multiplying<Avx512Amx>::registers;
  constexpr int kRows = TileRegisters::kRows;
  if (rows > kRows && tile.groups % TileRegisters::kGroups == 0)
    multiply_two_tiles<DotBFloat16>(registers, tile, rows, vectors);
  else
    for_each_tile<kRows>(rows, [&](int64_t r, int count) {
      TileFactors own = tile;
      own.rows += r * tile.row_pitch;
      own.to += r * tile.to_pitch;
      multiply_one_tile(registers, own, count, vectors);
    });
  for (int q = 0; f.last && q < vectors; ++q)
    for (int r = 0; r < rows; ++r) add(f.to + r * f.ld + q * kL, load<V>(f.last + q * kL));
}

// How many rows from the first on are equally far from each other.
inline int equally_far(const uint16_t* const* rows, int count) {
  int n = 1;
  while (n < count && (n == 1 || rows[n] - rows[n - 1] == rows[1] - rows[0])) ++n;
  return n;
}

template <>
void multiply<Avx512Amx, Dot2Product, false>(const Factors<Dot2Product>& f, int rows, int vectors) {
  static_assert(Avx512Amx::kTileRows == 2 * TileRegisters::kRows && TileRegisters::kLeastRows == 4);
  for (int r = 0, n; r < rows; r += n) {
    n = equally_far(f.rows + r, rows - r);
    Factors<Dot2Product> some = f;
    some.to += r * f.ld;
    some.rows += r;
    if (n == 1)
      multiply_rows<Avx512Amx, Dot2Product, false, 1>(some, vectors);
    else if (n == 2)
      multiply_rows<Avx512Amx, Dot2Product, false, 2>(some, vectors);
    else if (n == 3)
      multiply_rows<Avx512Amx, Dot2Product, false, 3>(some, vectors);
    else
      multiply_tile_rows(some, n, vectors);
  }
}

}  // namespace fusedlstm::cpu
