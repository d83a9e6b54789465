// The tiles of product.h: included by cpu/instances/products_<isa>.cpp only, which compile them once for the dtypes
// that are multiplied in the same precision.
#pragma once

#include "product.h"

namespace fusedlstm::cpu {

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

// Elements of k of a pass of the inner loop, in groups of kDepth.
constexpr int unrolled(int rows, int vectors) {
  const int sums = running_sums(rows, vectors), most = rows * vectors > 12 ? 2 : 4;
  return sums > most ? sums : most;
}

// Brings memory to L2, a cache line for every pass of the inner loop.
struct Stream {
  static constexpr int64_t kLine = 64;
  const char* next;
  int64_t step;  // 0: the same line over and over, which is in the cache already

  FUSEDLSTM_INLINE void bring() {
    __builtin_prefetch(next, 0, 2);
    next += step;
  }
};

// tile[r] += sum over k of a[r][k * kStride] * strip[k]; of more vectors than a strip has, the next strip lies `apart`.
template <class Isa, class Product, int kRows, int kStride, int kVectors>
FUSEDLSTM_INLINE void multiply_stretch(Tile<Isa, Product, kRows, kVectors>& tile,
                                       const typename Product::operand* const* a,
                                       const typename Product::operand* strip, int64_t apart, int64_t depth,
                                       Stream& ahead) {
  using V = AccVector<Isa, Product>;
  constexpr int kD = Product::kDepth, kL = kLanes<Isa, Product>, kOfStrip = strip_vectors<Isa>(kVectors);
  constexpr int kStep = kOfStrip * kL * kD;
  constexpr int kSums = running_sums(kRows, kVectors);
  constexpr int kUnroll = unrolled(kRows, kVectors);
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
    ahead.bring();
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

// The same for kVectors vectors of a panel of `vectors`, the first of which is q. kStride: of k in a row. A function of
// its own, the few copies of which serve every product: inlined they were most of the library. What they leave in
// memory is still in flight when it is read.
template <class Isa, class Product, int kRows, int kStride, int kVectors>
FUSEDLSTM_NOINLINE void multiply_tile(const Factors<Product>& f, int vectors, int q) {
  using V = AccVector<Isa, Product>;
  constexpr int kL = kLanes<Isa, Product>, kOfStrip = strip_vectors<Isa>(kVectors);
  const typename Product::operand* strip = f.panel + panel_at<Isa, Product>(vectors, f.depth, 0, q);
  typename Product::acc* to = f.to + q * kL;
  Stream ahead{reinterpret_cast<const char*>(strip), 0};
  if (f.ahead) {
    const int64_t of_strip = f.depth / (Product::kDepth * unrolled(kRows, kVectors)) * Stream::kLine;
    ahead = {f.ahead + q / kOfStrip * of_strip, Stream::kLine};
  }
  int64_t k = 0;
  do {  // of no depth too: zeros
    const typename Product::operand* rest[kRows];
    for (int r = 0; r < kRows; ++r) rest[r] = f.rows[r] + k * kStride;
    Tile<Isa, Product, kRows, kVectors> tile;
    clear(tile);
    multiply_stretch<Isa, Product, kRows, kStride, kVectors>(tile, rest, strip + k * kOfStrip * kL,
                                                             f.depth * kOfStrip * kL,
                                                             f.depth - k < f.longest ? f.depth - k : f.longest, ahead);
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
  if constexpr (kRows <= tile_rows<Isa>(3) && (!kInterleaved || kPanelsOfThree<Isa>)) {
    if (vectors == 3) return multiply_tile<Isa, Product, kRows, kStride, 3>(f, vectors, 0);
  }
  if constexpr (kRows <= 2) {  // at once: each element of a panel is used once or twice, whatever registers there are
    if (vectors == 4) return multiply_tile<Isa, Product, kRows, kStride, 4>(f, vectors, 0);
  }
  for (int q = 0; q < vectors; q += Isa::kStripVectors) {
    if constexpr (kRows <= Isa::kTileRows) {
      if (vectors - q >= Isa::kStripVectors) {
        multiply_tile<Isa, Product, kRows, kStride, Isa::kStripVectors>(f, vectors, q);
        continue;
      }
    }
    if (Isa::kStripVectors > 2 && vectors - q == 2)
      multiply_tile<Isa, Product, kRows, kStride, 2>(f, vectors, q);
    else
      multiply_tile<Isa, Product, kRows, kStride, 1>(f, vectors, q);
  }
}

template <class Isa, class Product, bool kInterleaved>
void multiply(const Factors<Product>& f, int rows, int vectors) {
  static_assert(Isa::kTileRows == 6 && Isa::kTileRowsOfThree <= 8);
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
  if constexpr (!kInterleaved && Isa::kTileRowsOfThree == 8) {  // of panels of three vectors, or of their last block
    if (rows == 7)
      multiply_rows<Isa, Product, false, 7>(f, vectors);
    else
      multiply_rows<Isa, Product, false, 8>(f, vectors);
  }
}

}  // namespace fusedlstm::cpu
