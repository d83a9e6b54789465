// The one inner loop of every matrix product: a tile of some rows by one strip of a panel.
//
// A *panel* holds, for every k, the up to four vectors that multiply operand element k. They are divided into *strips*
// of as many vectors as a tile has sums for in registers, one strip after the other:
//
//     strip[k][vectors][lanes]      (Dot2: strip[k / 2][vectors][lanes][2], two bfloat16 of neighbouring k side by
//     side)
//
// Four vectors are two strips of two where there are 16 registers, and one of four where there are 32; three vectors
// are one strip. Narrow strips leave registers for more rows: each element of a panel that comes from the cache is used
// six times.
//
// In the forward recurrence the vectors are the gates of one block of hidden units (gate_panel.h), so that a product
// ends with all sums of its units. Everywhere else they are 4 * lanes columns.
#pragma once

#include "simd.h"

namespace fusedlstm::cpu {

constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

inline constexpr int kPanelVectors = 4;

// How numbers are multiplied: `operand` is what tiles read, `acc` what they accumulate.
template <class T>
struct FullProduct {  // float or double
  using operand = T;
  using acc = T;
  static constexpr int kDepth = 1;  // elements of k consumed by one multiply-add
  template <class V>
  static FUSEDLSTM_INLINE V multiply_add(V a, V w, V sum) {
    return sum + a * w;
  }
  // The same in a tile that fills the registers: of the instruction's three forms the one that writes over the sum. GCC
  // takes the others too, and then moves sums about and out.
  template <class V>
  static FUSEDLSTM_INLINE V multiply_add_in_place(V a, V w, V sum) {
#if defined(__FMA__)
    if constexpr (sizeof(V) == 32 && sizeof(T) == 4) {
      asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(w));
      return sum;
    }
    if constexpr (sizeof(V) == 32 && sizeof(T) == 8) {
      asm("vfmadd231pd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(w));
      return sum;
    }
#endif
    return multiply_add(a, w, sum);
  }
  template <class V>
  static FUSEDLSTM_INLINE V broadcast(const operand* a) {
    return *a - V{};  // x - 0 is x; 0 + x is not for x = -0, and would cost an addition
  }
};

// bfloat16 pairs, accumulated in float32 by the processor's dot product.
struct Dot2Product {
  using operand = uint16_t;
  using acc = float;
  static constexpr int kDepth = 2;
  template <class V>
  static FUSEDLSTM_INLINE V multiply_add(V a, V w, V sum) {
#if defined(__AVX512BF16__)
    return bits<V>(_mm512_dpbf16_ps(bits<__m512>(sum), bits<__m512bh>(a), bits<__m512bh>(w)));
#else
    return sum;  // never instantiated without the instruction
#endif
  }
  template <class V>
  static FUSEDLSTM_INLINE V multiply_add_in_place(V a, V w, V sum) {
    return multiply_add(a, w, sum);
  }
  template <class V>
  static FUSEDLSTM_INLINE V broadcast(const operand* a) {
    uint32_t pair;
    __builtin_memcpy(&pair, a, sizeof pair);
    return bits<V>(typename VectorOf<uint32_t, sizeof(V)>::type{} + pair);
  }
};

template <class Isa, class Product>
using AccVector = Vector<Isa, typename Product::acc>;

template <class Isa, class Product>
inline constexpr int kLanes = Isa::kVectorBytes / int(sizeof(typename Product::acc));

// Vectors for each k in a strip of a panel of `vectors`. There may be fewer that are wanted.
template <class Isa>
constexpr int strip_vectors(int vectors) {
  return vectors == 3 ? 3 : Isa::kStripVectors;
}

// The most rows of a tile by a panel of `vectors`.
template <class Isa>
constexpr int tile_rows(int vectors) {
  return vectors == 3 ? Isa::kTileRowsOfThree : Isa::kTileRows;
}

// Whether columns that need three vectors have a panel of three: where its tiles have as many rows as those of four.
template <class Isa>
inline constexpr bool kPanelsOfThree = tile_rows<Isa>(3) >= tile_rows<Isa>(4);

// Where element k of vector q begins in a panel of `vectors` and `depth` elements of k, a multiple of kDepth as k is.
template <class Isa, class Product>
constexpr int64_t panel_at(int vectors, int64_t depth, int64_t k, int q) {
  const int of_strip = strip_vectors<Isa>(vectors);
  return ((q / of_strip * depth + k) * of_strip + q % of_strip * Product::kDepth) * kLanes<Isa, Product>;
}

// A running sum rounds in proportion to itself at every step: it is cut into stretches of k, which are added up. The
// error of n products is least with stretches of sqrt(n); each kind of sum has the longest for which it is at most
// nn.LSTM's on every machine seen, since stretches cost loads and stores. Sums over rows: outer.h.
inline constexpr int64_t kForwardStretch = 128;
inline constexpr int64_t kBackwardStretch = 128;
// A cell of one gate has the whole error of its sum in its state, and libraries sum a handful of rows more exactly.
constexpr int64_t hidden_stretch(int gates) {
  return gates == 1 ? 32 : kForwardStretch;
}
// The input's part is the largest of a pre-activation, and so are its errors: what would be one sum is cut in two.
constexpr int64_t input_stretch(int64_t depth) {
  return depth < 16 || depth >= 2 * kForwardStretch ? kForwardStretch : round_up((depth + 1) / 2, 2);
}

// to[r][q] = sum over k of rows[r][k] * panel[k][q], plus last[q] where `last` is not null; the rows of `to` are `ld`
// apart. `depth` counts elements of k, a multiple of kDepth, and so does `longest`, of a stretch.
//
// ahead: where a part of what later products read begins, which is on its way to L2 while this one is made; or null.
// Products in tile registers leave it alone: it gained them nothing.
template <class Product>
struct Factors {
  typename Product::acc* to;
  int64_t ld;
  const typename Product::operand* const* rows;
  const typename Product::operand* panel;
  int64_t depth, longest;
  const typename Product::acc* last = nullptr;
  const char* ahead = nullptr;
};

// Rows from which on the panel after the one in use is brought; with fewer the core waits for memory in any case.
inline constexpr int64_t kRowsAhead = 24;

// A panel that comes next, a part for each of the tiles by the one before it. All weights of a large layer come from
// memory at every step, at a rate that a core could wait for; with many rows a panel is in use for long enough to bring
// the next one.
struct Ahead {
  const char* from = nullptr;
  int64_t bytes = 0, rows = 1;  // of the panel; of the product in use

  // For the tile that begins with row r.
  const char* at(int64_t r) const { return from ? from + bytes * r / rows : nullptr; }
};

// For 1 .. tile_rows(vectors) `rows`. kInterleaved: element k of all rows lies side by side, as many as there are rows.
// Defined in tile.h and bfloat16_tiles.h: linked, not compiled with every caller, which holds a Multiplying.
template <class Isa, class Product, bool kInterleaved = false>
void multiply(const Factors<Product>& f, int rows, int vectors);
template <>
void multiply<Avx512Amx, Dot2Product, false>(const Factors<Dot2Product>& f, int rows, int vectors);

}  // namespace fusedlstm::cpu
