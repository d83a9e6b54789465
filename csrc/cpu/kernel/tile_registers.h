// The tile registers of AMX: sums of 16 rows by 16 columns, of products of 16 groups of k in one instruction. A group
// is four bytes of a row: four of int8, or two bfloat16.
#pragma once

#include "simd.h"

#if defined(__AMX_TILE__)
namespace fusedlstm::cpu {

// The shapes that this thread has given its registers, while it uses them. 0 .. 3 are sums, as many as hide the latency
// of an instruction. Up to 16 rows: 4 and 5 are rows and weights, 6 and 7 those of a last, incomplete product. Up to 32
// rows, of whole products: 4 and 5 are 16 rows and the others, 6 and 7 weights; sums are two by two.
class TileRegisters {
 public:
  static constexpr int kRows = 16, kSums = 4;
  static constexpr int kLeastRows = 4;  // from here on, tiles are faster than vectors
  static constexpr int kX = 4, kW = 5, kLastX = 6, kLastW = 7;
  static constexpr int kOtherX = 5, kWOfTwo = 6, kOtherWOfTwo = 7;
  static constexpr int64_t kGroups = 16, kGroupBytes = 4, kRowBytes = 64;

  // last: groups of the last product, or 0. A change of shapes takes as long as 16 products.
  void shape(int wanted_rows, int64_t wanted_last) {
    if (rows == wanted_rows && (wanted_last == 0 || last == wanted_last)) return;
    rows = wanted_rows;
    last = rows > kRows ? 0 : wanted_last;
    const int first = rows < kRows ? rows : kRows, other = rows - first;
    Shapes shapes;
    for (int tile = 0; tile < 8; ++tile) shapes.set(tile, first, kGroups);
    if (rows > kRows) {
      for (int tile = 2; tile < 4; ++tile) shapes.set(tile, other, kGroups);
      shapes.set(kOtherX, other, kGroups);
      shapes.set(kWOfTwo, kGroups, kGroups);
      shapes.set(kOtherWOfTwo, kGroups, kGroups);
    } else {
      shapes.set(kW, kGroups, kGroups);
      shapes.set(kLastX, last > 0 ? rows : 0, last);
      shapes.set(kLastW, last, last > 0 ? kGroups : 0);
    }
    asm volatile("ldtilecfg %0" ::"m"(shapes));
  }
  void release() {
    if (rows > 0) asm volatile("tilerelease");
    rows = 0;
  }

 private:
  int rows = 0;  // 0: no shapes
  int64_t last = 0;

  struct Shapes {
    uint8_t palette = 1, first_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    void set(int tile, int64_t count, int64_t groups) {
      rows[tile] = uint8_t(count);
      row_bytes[tile] = uint16_t(groups * kGroupBytes);
    }
  };
  static_assert(sizeof(Shapes) == 64);
};

// The instructions take numbers of registers as constants, the compiler's own functions only as literals.
template <int kTile>
FUSEDLSTM_INLINE void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
template <int kTile>
FUSEDLSTM_INLINE void load_tile(const char* from, int64_t pitch) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(kTile), "r"(from), "r"(pitch) : "memory");
}
template <int kTile>
FUSEDLSTM_INLINE void store_tile(char* to, int64_t pitch) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(kTile), "r"(to), "r"(pitch) : "memory");
}

// sum += x w.
struct DotBytes {  // unsigned by signed, in int32
  template <int kSum, int kX, int kW>
  static FUSEDLSTM_INLINE void dot() {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kX), "i"(kW));
  }
};
struct DotBFloat16 {  // in float32; subnormal numbers count as zeros
  template <int kSum, int kX, int kW>
  static FUSEDLSTM_INLINE void dot() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kX), "i"(kW));
  }
};

// to[r][v] = rows[r] by weights, 16 lanes of four bytes for each of some vectors v. All distances in bytes.
struct TileFactors {
  const char* rows;
  int64_t row_pitch;
  const char* weights;
  int64_t group_pitch, vector_pitch;  // from one group of k to the next, from one vector to the next
  int64_t groups;
  char* to;
  int64_t to_pitch, to_vector_pitch;
};

template <class Dot, int kFirst, int kVectors, int kX, int kW, int kVector = 0>
FUSEDLSTM_INLINE void add_vectors(const TileFactors& f, int64_t group) {
  if constexpr (kVector < kVectors) {
    load_tile<kW>(f.weights + group * f.group_pitch + kVector * f.vector_pitch, f.group_pitch);
    Dot::template dot<kFirst + kVector, kX, kW>();
    add_vectors<Dot, kFirst, kVectors, kX, kW, kVector + 1>(f, group);
  }
}
// Sums kFirst .. += products of the groups from `group` on.
template <class Dot, int kFirst, int kVectors, int kX, int kW>
FUSEDLSTM_INLINE void add_products(const TileFactors& f, int64_t group) {
  load_tile<kX>(f.rows + group * TileRegisters::kGroupBytes, f.row_pitch);
  add_vectors<Dot, kFirst, kVectors, kX, kW>(f, group);
}
template <int kVectors, int kVector = 0>
FUSEDLSTM_INLINE void store_vectors(const TileFactors& f) {
  if constexpr (kVector < kVectors) {
    store_tile<kVector>(f.to + kVector * f.to_vector_pitch, f.to_pitch);
    store_vectors<kVectors, kVector + 1>(f);
  }
}

// For 1 .. 16 rows. Few vectors are summed in parts of k, which `T` adds up.
template <class Dot, class T, int kVectors>
FUSEDLSTM_NOINLINE void multiply_tile(TileRegisters& registers, const TileFactors& f, int rows) {
  using Registers = TileRegisters;
  constexpr int kParts = Registers::kSums / kVectors;
  constexpr int64_t kGroups = Registers::kGroups;
  registers.shape(rows, f.groups % kGroups);
  zero_tile<0>();
  zero_tile<1>();
  zero_tile<2>();
  zero_tile<3>();
  const int64_t whole = f.groups / kGroups * kGroups;
  int64_t g = 0;
  for (; kParts > 1 && g + kParts * kGroups <= whole; g += kParts * kGroups) {
    add_products<Dot, 0, kVectors, Registers::kX, Registers::kW>(f, g);
    if constexpr (kParts > 1) add_products<Dot, kVectors, kVectors, Registers::kX, Registers::kW>(f, g + kGroups);
    if constexpr (kParts > 2) {
      add_products<Dot, 2, kVectors, Registers::kX, Registers::kW>(f, g + 2 * kGroups);
      add_products<Dot, 3, kVectors, Registers::kX, Registers::kW>(f, g + 3 * kGroups);
    }
  }
  for (; g < whole; g += kGroups) add_products<Dot, 0, kVectors, Registers::kX, Registers::kW>(f, g);
  if (g < f.groups) add_products<Dot, 0, kVectors, Registers::kLastX, Registers::kLastW>(f, g);
  store_vectors<kVectors>(f);
  if constexpr (kParts > 1) {
    constexpr int kLanes = Registers::kRowBytes / sizeof(T);
    using V = Vector<Avx512, T>;
    alignas(64) T parts[Registers::kSums][Registers::kRows][kLanes];
    TileFactors all = f;
    all.to = reinterpret_cast<char*>(parts);
    all.to_pitch = Registers::kRowBytes;
    all.to_vector_pitch = Registers::kRows * Registers::kRowBytes;
    store_vectors<Registers::kSums>(all);
    for (int part = 1; part < kParts; ++part)
      for (int v = 0; v < kVectors; ++v)
        for (int r = 0; r < rows; ++r)
          add(reinterpret_cast<T*>(f.to + v * f.to_vector_pitch + r * f.to_pitch),
              load<V>(parts[part * kVectors + v][r]));
  }
}

// For 17 .. 32 rows and whole products: weights are read half as often.
template <class Dot, int kVectors>
FUSEDLSTM_INLINE void multiply_vectors_of_two(const TileFactors& f, int vector) {
  using Registers = TileRegisters;
  TileFactors own = f;
  own.weights += vector * f.vector_pitch;
  own.to += vector * f.to_vector_pitch;
  zero_tile<0>();
  zero_tile<1>();
  zero_tile<2>();
  zero_tile<3>();
  for (int64_t g = 0; g < f.groups; g += Registers::kGroups) {
    const char *x = own.rows + g * Registers::kGroupBytes, *w = own.weights + g * f.group_pitch;
    load_tile<Registers::kX>(x, f.row_pitch);
    load_tile<Registers::kOtherX>(x + Registers::kRows * f.row_pitch, f.row_pitch);
    load_tile<Registers::kWOfTwo>(w, f.group_pitch);
    Dot::template dot<0, Registers::kX, Registers::kWOfTwo>();
    Dot::template dot<2, Registers::kOtherX, Registers::kWOfTwo>();
    if constexpr (kVectors > 1) {
      load_tile<Registers::kOtherWOfTwo>(w + f.vector_pitch, f.group_pitch);
      Dot::template dot<1, Registers::kX, Registers::kOtherWOfTwo>();
      Dot::template dot<3, Registers::kOtherX, Registers::kOtherWOfTwo>();
    }
  }
  store_vectors<kVectors>(own);
  store_tile<2>(own.to + Registers::kRows * f.to_pitch, f.to_pitch);
  if constexpr (kVectors > 1) store_tile<3>(own.to + Registers::kRows * f.to_pitch + f.to_vector_pitch, f.to_pitch);
}
template <class Dot>
FUSEDLSTM_NOINLINE void multiply_two_tiles(TileRegisters& registers, const TileFactors& f, int rows, int vectors) {
  registers.shape(rows, 0);
  int v = 0;
  for (; v + 2 <= vectors; v += 2) multiply_vectors_of_two<Dot, 2>(f, v);
  if (v < vectors) multiply_vectors_of_two<Dot, 1>(f, v);
}

}  // namespace fusedlstm::cpu
#endif
