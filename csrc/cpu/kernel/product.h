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

// Where element k of vector q begins in a panel of `vectors` and `depth` elements of k, a multiple of kDepth as k is.
template <class Isa, class Product>
constexpr int64_t panel_at(int vectors, int64_t depth, int64_t k, int q) {
  const int of_strip = strip_vectors<Isa>(vectors);
  return ((q / of_strip * depth + k) * of_strip + q % of_strip * Product::kDepth) * kLanes<Isa, Product>;
}

// The sums of a tile while they are made, in registers.
template <class Isa, class Product, int kRows, int kVectors>
struct Tile {
  AccVector<Isa, Product> v[kRows][kVectors];
};

// By assignments, which stay in registers; an initializer is a block of memory to GCC.
template <class Isa, class Product, int kRows, int kVectors>
FUSEDLSTM_INLINE void clear(Tile<Isa, Product, kRows, kVectors>& tile) {
  for (auto& row : tile.v)
    for (auto& v : row) v = AccVector<Isa, Product>{};
}

// Running sums of each element: a single row has too few elements to hide the latency of a multiply-add behind each
// other. Two rows or more have as many, so that what else is in a tile does not decide a row's last bit.
constexpr int running_sums(int rows, int vectors) {
  const int all = rows >= 2 ? 2 : 8, at_once = vectors == 3 ? 4 : vectors;
  return all > at_once ? all / at_once : 1;
}

// tile[r] += sum over k of a[r][k * kStride] * strip[k]; of more vectors than a strip has, the next strip lies `apart`.
template <class Isa, class Product, int kRows, int kStride, int kVectors>
FUSEDLSTM_INLINE void multiply_stretch(Tile<Isa, Product, kRows, kVectors>& tile,
                                       const typename Product::operand* const* a,
                                       const typename Product::operand* strip, int64_t apart, int64_t depth) {
  using V = AccVector<Isa, Product>;
  constexpr int kD = Product::kDepth, kL = kLanes<Isa, Product>, kOfStrip = strip_vectors<Isa>(kVectors);
  constexpr int kStep = kOfStrip * kL * kD;
  constexpr int kSums = running_sums(kRows, kVectors);
  constexpr int kMost = kRows * kVectors > 12 ? 2 : 4, kUnroll = kSums > kMost ? kSums : kMost;
  const typename Product::operand* rows[kRows];
  for (int r = 0; r < kRows; ++r) rows[r] = a[r];
  Tile<Isa, Product, kRows, kVectors> sums[kSums];
  sums[0] = tile;
#pragma GCC unroll 8
  for (int n = 1; n < kSums; ++n) clear(sums[n]);
  const auto add = [&](int64_t k, const typename Product::operand* from, auto& to) FUSEDLSTM_LAMBDA {
    V w[kVectors];
#pragma GCC unroll 4
    for (int q = 0; q < kVectors; ++q) w[q] = load<V>(from + q / kOfStrip * apart + q % kOfStrip * kL * kD);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const V x = Product::template broadcast<V>(rows[r] + k * kStride);
#pragma GCC unroll 4
      for (int q = 0; q < kVectors; ++q)
        to.v[r][q] = kRows > 2 ? Product::multiply_add_in_place(x, w[q], to.v[r][q])
                               : Product::multiply_add(x, w[q], to.v[r][q]);
    }
  };
  int64_t k = 0;
  for (; k + kD * kUnroll <= depth; k += kD * kUnroll) {
#pragma GCC unroll 8
    for (int u = 0; u < kUnroll; ++u) add(k + u * kD, strip + u * kStep, sums[u % kSums]);
    strip += kStep * kUnroll;
  }
  for (; k < depth; k += kD, strip += kStep) add(k, strip, sums[0]);
#pragma GCC unroll 8
  for (int n = kSums / 2; n > 0; n /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i)
      for (int r = 0; r < kRows; ++r)
        for (int q = 0; q < kVectors; ++q) sums[i].v[r][q] += sums[i + n].v[r][q];
  tile = sums[0];
}

// A running sum rounds in proportion to itself at every step: it is cut into stretches of k, which are added up. The
// error of n products is least with stretches of sqrt(n); each kind of sum has the longest for which it is at most
// nn.LSTM's on every machine seen, since stretches cost loads and stores. Sums over rows: outer.h.
inline constexpr int64_t kForwardStretch = 128;
inline constexpr int64_t kBackwardStretch = 128;
// The input's part is the largest of a pre-activation, and so are its errors: what would be one sum is cut in two.
constexpr int64_t input_stretch(int64_t depth) {
  return depth < 16 || depth >= 2 * kForwardStretch ? kForwardStretch : round_up((depth + 1) / 2, 2);
}

// to[r][q] = sum over k of rows[r][k] * panel[k][q], plus last[q] where `last` is not null; the rows of `to` are `ld`
// apart. `depth` counts elements of k, a multiple of kDepth, and so does `longest`, of a stretch.
template <class Product>
struct Factors {
  typename Product::acc* to;
  int64_t ld;
  const typename Product::operand* const* rows;
  const typename Product::operand* panel;
  int64_t depth, longest;
  const typename Product::acc* last = nullptr;
};

// The same for kVectors vectors of a panel of `vectors`, the first of which is q. kStride: of k in a row. A function of
// its own, the few copies of which serve every product: inlined they were most of the library. What they leave in
// memory is still in flight when it is read.
template <class Isa, class Product, int kRows, int kStride, int kVectors>
__attribute__((noinline)) void multiply_tile(const Factors<Product>& f, int vectors, int q) {
  using V = AccVector<Isa, Product>;
  constexpr int kL = kLanes<Isa, Product>, kOfStrip = strip_vectors<Isa>(kVectors);
  const typename Product::operand* strip = f.panel + panel_at<Isa, Product>(vectors, f.depth, 0, q);
  typename Product::acc* to = f.to + q * kL;
  int64_t k = 0;
  do {  // of no depth too: zeros
    const typename Product::operand* rest[kRows];
    for (int r = 0; r < kRows; ++r) rest[r] = f.rows[r] + k * kStride;
    Tile<Isa, Product, kRows, kVectors> tile;
    clear(tile);
    multiply_stretch<Isa, Product, kRows, kStride, kVectors>(tile, rest, strip + k * kOfStrip * kL,
                                                             f.depth * kOfStrip * kL,
                                                             f.depth - k < f.longest ? f.depth - k : f.longest);
    for (int r = 0; r < kRows; ++r)
      for (int i = 0; i < kVectors; ++i) {
        typename Product::acc* at = to + r * f.ld + i * kL;
        store(at, k == 0 ? tile.v[r][i] : load<V>(at) + tile.v[r][i]);
      }
    k += f.longest;
  } while (k < f.depth);
  for (int i = 0; f.last && i < kVectors; ++i)
    for (int r = 0; r < kRows; ++r) add(to + r * f.ld + i * kL, load<V>(f.last + (q + i) * kL));
}

// All strips of a panel of 1 .. 4 `vectors`: those that lie beyond the columns of the matrix need not be multiplied.
template <class Isa, class Product, bool kInterleaved, int kRows>
FUSEDLSTM_INLINE void multiply_rows(const Factors<Product>& f, int vectors) {
  constexpr int kStride = kInterleaved ? kRows : 1;
  if constexpr (!kInterleaved && kRows <= tile_rows<Isa>(3)) {
    if (vectors == 3) return multiply_tile<Isa, Product, kRows, kStride, 3>(f, vectors, 0);
  }
  if constexpr (kRows <= 2) {  // at once: each element of a panel is used once or twice, whatever registers there are
    if (vectors == 4) return multiply_tile<Isa, Product, kRows, kStride, 4>(f, vectors, 0);
  }
  for (int q = 0; q < vectors; q += Isa::kStripVectors) {
    if (vectors - q >= Isa::kStripVectors)
      multiply_tile<Isa, Product, kRows, kStride, Isa::kStripVectors>(f, vectors, q);
    else if (Isa::kStripVectors > 2 && vectors - q == 2)
      multiply_tile<Isa, Product, kRows, kStride, 2>(f, vectors, q);
    else
      multiply_tile<Isa, Product, kRows, kStride, 1>(f, vectors, q);
  }
}

// For 1 .. tile_rows(vectors) `rows`. kInterleaved: element k of all rows lies side by side, as many as there are rows.
template <class Isa, class Product, bool kInterleaved = false>
__attribute__((noinline)) void multiply(const Factors<Product>& f, int rows, int vectors) {
  static_assert(Isa::kTileRows == 6);
  switch (rows) {
    case 1:
      return multiply_rows<Isa, Product, kInterleaved, 1>(f, vectors);
    case 2:
      return multiply_rows<Isa, Product, kInterleaved, 2>(f, vectors);
    case 3:
      return multiply_rows<Isa, Product, kInterleaved, 3>(f, vectors);
    case 4:
      return multiply_rows<Isa, Product, kInterleaved, 4>(f, vectors);
    case 5:
      return multiply_rows<Isa, Product, kInterleaved, 5>(f, vectors);
    case 6:
      return multiply_rows<Isa, Product, kInterleaved, 6>(f, vectors);
  }
}

}  // namespace fusedlstm::cpu
