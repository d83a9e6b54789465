// The one inner loop of every matrix product: a tile of kRows rows by one panel of four vectors.
//
// A *panel* holds, for every k, the four vectors that multiply operand element k:
//
//     panel[k][4][lanes]      (Dot2: panel[k / 2][4][lanes][2], two bfloat16 of neighbouring k side by side)
//
// In the forward recurrence the vectors are the gates of one block of hidden units (gate_panel.h), so that a product
// ends with all sums of its units; three gates have panels of three vectors. Everywhere else they are 4 * lanes
// columns.
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

// Elements of one panel for every k (both of a pair): the stride of k in a panel is kPanelWidth / kDepth per element.
template <class Isa, class Product>
inline constexpr int kPanelWidth = kPanelVectors * kLanes<Isa, Product>;

// Vectors for each k in a panel of which `vectors` are multiplied.
constexpr int panel_pitch(int vectors) {
  return vectors == 3 ? 3 : kPanelVectors;
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

// tile[r] += sum over k of a[r][k * kStride] * panel[k], one running sum an element.
// Few rows leave too few independent sums to hide the latency of a multiply-add: they take two k at a time.
template <class Isa, class Product, int kRows, int kStride, int kVectors>
FUSEDLSTM_INLINE void multiply_stretch(Tile<Isa, Product, kRows, kVectors>& tile,
                                       const typename Product::operand* const* a,
                                       const typename Product::operand* panel, int64_t depth) {
  using V = AccVector<Isa, Product>;
  constexpr int kD = Product::kDepth;
  constexpr int kStep = panel_pitch(kVectors) * kLanes<Isa, Product> * kD;
  constexpr int kUnroll = kRows * kVectors * 2 <= Isa::kTileRows * kPanelVectors ? 2 : 1;
  const typename Product::operand* rows[kRows];
  for (int r = 0; r < kRows; ++r) rows[r] = a[r];
  Tile<Isa, Product, kRows, kVectors> odd;
  clear(odd);
  int64_t k = 0;
  for (; k + kD * kUnroll <= depth; k += kD * kUnroll) {
#pragma GCC unroll 2
    for (int u = 0; u < kUnroll; ++u) {
      V w[kVectors];
#pragma GCC unroll 4
      for (int q = 0; q < kVectors; ++q) w[q] = load<V>(panel + u * kStep + q * kLanes<Isa, Product> * kD);
      if constexpr (kUnroll == 2 && kRows > 1 && kVectors == kPanelVectors) {
        for (V& v : w) keep_in_register(v);  // loads would take longer than the multiply-adds
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
        for (int q = 0; q < kVectors; ++q) {
          V& sum = u == 0 ? tile.v[r][q] : odd.v[r][q];
          sum = Product::multiply_add(Product::template broadcast<V>(rows[r] + (k + u * kD) * kStride), w[q], sum);
        }
      }
    }
    panel += kStep * kUnroll;
  }
  if constexpr (kUnroll == 2) {
    if (k < depth) {
      for (int r = 0; r < kRows; ++r)
        for (int q = 0; q < kVectors; ++q)
          tile.v[r][q] = Product::multiply_add(Product::template broadcast<V>(rows[r] + k * kStride),
                                               load<V>(panel + q * kLanes<Isa, Product> * kD), tile.v[r][q]);
    }
    for (int r = 0; r < kRows; ++r)
      for (int q = 0; q < kVectors; ++q) tile.v[r][q] += odd.v[r][q];
  }
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

// to[r][q] = sum over k of a[r][k * kStride] * panel[k][q]; the rows of `to` are `ld` apart. `depth` counts elements of
// k, a multiple of kDepth, and so does `longest`, of a stretch. A function of its own, the few copies of which serve
// every product: inlined they were most of the library. What they leave in memory is still in flight when it is read.
template <class Isa, class Product, int kRows, int kStride, int kVectors>
__attribute__((noinline)) void multiply_tile(typename Product::acc* to, int64_t ld,
                                             const typename Product::operand* const* a,
                                             const typename Product::operand* panel, int64_t depth, int64_t longest) {
  using V = AccVector<Isa, Product>;
  constexpr int kL = kLanes<Isa, Product>;
  int64_t k = 0;
  do {  // of no depth too: zeros
    const typename Product::operand* rest[kRows];
    for (int r = 0; r < kRows; ++r) rest[r] = a[r] + k * kStride;
    Tile<Isa, Product, kRows, kVectors> tile;
    clear(tile);
    multiply_stretch<Isa, Product, kRows, kStride, kVectors>(tile, rest, panel + k * panel_pitch(kVectors) * kL,
                                                             depth - k < longest ? depth - k : longest);
    for (int r = 0; r < kRows; ++r)
      for (int q = 0; q < kVectors; ++q) {
        typename Product::acc* at = to + r * ld + q * kL;
        store(at, k == 0 ? tile.v[r][q] : load<V>(at) + tile.v[r][q]);
      }
    k += longest;
  } while (k < depth);
}

// The same for 1 .. kTileRows `rows` and 1 .. 4 `vectors`: those of a panel that lie beyond the columns of the
// matrix need not be multiplied. kInterleaved: element k of all rows lies side by side, as many as there are rows.
template <class Isa, class Product, bool kInterleaved = false, int kMostRows = Isa::kTileRows>
void multiply(typename Product::acc* to, int64_t ld, const typename Product::operand* const* a,
              const typename Product::operand* panel, int64_t depth, int64_t longest, int rows, int vectors) {
  constexpr int kStride = kInterleaved ? kMostRows : 1;
  if constexpr (kMostRows > 1) {
    if (rows < kMostRows)
      return multiply<Isa, Product, kInterleaved, kMostRows - 1>(to, ld, a, panel, depth, longest, rows, vectors);
  }
  if (vectors == 4) return multiply_tile<Isa, Product, kMostRows, kStride, 4>(to, ld, a, panel, depth, longest);
  if constexpr (!kInterleaved) {
    if (vectors == 3) return multiply_tile<Isa, Product, kMostRows, kStride, 3>(to, ld, a, panel, depth, longest);
  }
  if (vectors == 2) return multiply_tile<Isa, Product, kMostRows, kStride, 2>(to, ld, a, panel, depth, longest);
  multiply_tile<Isa, Product, kMostRows, kStride, 1>(to, ld, a, panel, depth, longest);
}

}  // namespace fusedlstm::cpu
