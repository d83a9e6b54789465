// Brings matrices into panels (product.h) and rows into operands, for one storage dtype and one way to multiply.
#pragma once

#include "cpu/division.h"
#include "product.h"
#include "short_math.h"
#include "storage.h"

namespace fusedlstm::cpu {

// Everything the kernels need to know about one dtype on one instruction set.
template <class IsaT, class StorageT, class ProductT>
struct Kit {
  using Isa = IsaT;
  using Storage = StorageT;
  using Product = ProductT;
  using storage = typename Storage::type;
  using operand = typename Product::operand;
  using acc = typename Product::acc;
  using V = Vector<Isa, acc>;
  using Math = std::conditional_t<sizeof(storage) == 2, ShortMath<Isa>, VectorMath<Isa, acc>>;
  static constexpr bool kTrains = true;  // whether what backward needs is kept where it is asked for
  static constexpr int kLanes = cpu::kLanes<Isa, Product>;
  static constexpr int kDepth = Product::kDepth;
  static constexpr int kPanel = kPanelVectors * kLanes;  // columns of a panel; operands of a panel per element of k
  static constexpr int kTileRows = Isa::kTileRows;
  // How operands are stored where a kernel keeps them: as computed, or as bfloat16 for the dot product.
  using OperandStorage = std::conditional_t<kDepth == 2, BFloat16Storage, Full<acc>>;

  static constexpr int64_t panel_at(int vectors, int64_t depth, int64_t k, int q) {
    return cpu::panel_at<Isa, Product>(vectors, depth, k, q);
  }
  static FUSEDLSTM_INLINE V load(const storage* p, int64_t n = kLanes) { return Storage::template load<Isa>(p, n); }
  static FUSEDLSTM_INLINE void store(storage* p, V v, int64_t n = kLanes) { Storage::template store<Isa>(p, v, n); }
  static FUSEDLSTM_INLINE V round(V v) { return Storage::template round<Isa>(v); }
  static FUSEDLSTM_INLINE V load_operand(const operand* p, int64_t n = kLanes) {
    return OperandStorage::template load<Isa>(p, n);
  }
  static FUSEDLSTM_INLINE void store_operand(operand* p, V v, int64_t n = kLanes) {
    OperandStorage::template store<Isa>(p, v, n);
  }
};

// One vector of panel material: `n` columns of row k (and, for pairs, of row k + 1 beside it).
template <class K, class S>
FUSEDLSTM_INLINE typename K::V column_vector(const typename S::type* row, const typename S::type* next, int64_t n) {
  if constexpr (K::kDepth == 1) {
    return S::template load<typename K::Isa>(row, n);
  } else {
    using U = Vector<typename K::Isa, uint32_t>;
    using H = HalfVector<typename K::Isa>;
    U v = __builtin_convertvector(load_some<H>(row, n), U);
    if (next) v |= __builtin_convertvector(load_some<H>(next, n), U) << 16;
    return bits<typename K::V>(v);
  }
}

// The operands of such a vector as numbers; of pairs the sum of both.
template <class K>
FUSEDLSTM_INLINE typename K::V sum_of_depth(typename K::V v) {
  if constexpr (K::kDepth == 1) {
    return v;
  } else {
    const auto pairs = bits<Vector<typename K::Isa, uint32_t>>(v);
    return bits<typename K::V>(pairs << 16) + bits<typename K::V>(pairs & 0xffff0000u);
  }
}

// One vector along k: elements k .. of a row, as 32- or 64-bit groups of kDepth operands; `n` elements exist.
template <class K>
FUSEDLSTM_INLINE typename K::V depth_vector(const typename K::storage* row, int64_t n) {
  if constexpr (K::kDepth == 1) {
    return K::load(row, n);
  } else {
    if (n >= 2 * K::kLanes) return load<typename K::V>(row);
    alignas(64) uint16_t pairs[2 * K::kLanes] = {};
    __builtin_memcpy(pairs, row, size_t(n < 2 * K::kLanes ? n : 2 * K::kLanes) * sizeof(uint16_t));
    return load<typename K::V>(pairs);
  }
}

// Transposes a square of blocks of kBlock lanes in registers, v[row] = block by block: exchanges ever larger
// sub-squares across the diagonal.
template <class K, int kBlock = 1>
FUSEDLSTM_INLINE void transpose(typename K::V (&v)[K::kLanes / kBlock]) {
  using Index = Vector<typename K::Isa, std::conditional_t<sizeof(typename K::acc) == 4, int32_t, int64_t>>;
  constexpr int kLanes = K::kLanes, kRows = kLanes / kBlock;
#pragma GCC unroll 8
  for (int s = 1; s < kRows; s *= 2) {
    Index low{}, high{};
#pragma GCC unroll 16
    for (int l = 0; l < kLanes; ++l) {
      const bool upper = l / kBlock & s;
      low[l] = upper ? kLanes + l - s * kBlock : l;
      high[l] = upper ? kLanes + l : l + s * kBlock;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      if (i & s) continue;
      const auto a = v[i], b = v[i + s];
      v[i] = __builtin_shuffle(a, b, low);
      v[i + s] = __builtin_shuffle(a, b, high);
    }
  }
}

// Runs body(fold as a constant), of 1, 2 and 4.
template <class K, class Body>
FUSEDLSTM_INLINE void for_fold(int fold, Body body) {
  if (fold == 1) return body(std::integral_constant<int, 1>{});
  if (fold == 2) return body(std::integral_constant<int, 2>{});
  if constexpr (K::kLanes >= 4) body(std::integral_constant<int, 4>{});
}

// The first blocks of kFold vectors in one.
template <class K, int kFold>
FUSEDLSTM_INLINE typename K::V side_by_side(const typename K::V* from) {
  typename K::V v[kFold];
#pragma GCC unroll 4
  for (int j = 0; j < kFold; ++j) v[j] = from[j];
  transpose<K, K::kLanes / kFold>(v);
  return v[0];
}

// The blocks of a vector, each as the first of its own; the rest of it is zero.
template <class K, int kFold>
FUSEDLSTM_INLINE void unfold(typename K::V from, typename K::V* to) {
  typename K::V v[kFold];
#pragma GCC unroll 4
  for (int j = 0; j < kFold; ++j) v[j] = j == 0 ? from : typename K::V{};
  transpose<K, K::kLanes / kFold>(v);
#pragma GCC unroll 4
  for (int j = 0; j < kFold; ++j) to[j] = v[j];
}

// Vectors of a panel of which `columns` are wanted.
template <class K>
constexpr int vectors_of(int64_t columns) {
  if (columns > 2 * K::kLanes) return kPanelsOfThree<typename K::Isa> && columns <= 3 * K::kLanes ? 3 : 4;
  return columns > K::kLanes ? 2 : 1;
}

// The elements `range` of k, whole groups of kDepth, of the panel of columns column .. of a matrix [depth, columns]:
// those of element k are matrix[k][column + lane], zero beyond. row_of(k) is a row of the matrix, of which `rows`
// exist.
template <class K, class S = typename K::Storage, class RowOf>
FUSEDLSTM_INLINE void pack_columns(typename K::operand* panel, RowOf row_of, Range range, int64_t rows, int64_t depth,
                                   int64_t columns, int64_t column) {
  const int vectors = vectors_of<K>(columns - column);
  for (int64_t k = range.begin; k < range.end; k += K::kDepth) {
    const auto* row = row_of(k);
    const auto* next = K::kDepth == 2 && k + 1 < rows ? row_of(k + 1) : nullptr;
    for (int q = 0; q < vectors; ++q) {
      const int64_t c = column + q * K::kLanes;
      typename K::V v{};
      if (c < columns) v = column_vector<K, S>(row + c, next ? next + c : nullptr, columns - c);
      store(panel + K::panel_at(vectors, depth, k, q), v);
    }
  }
}

// One vector of a panel of `depth` elements of k, the lanes of which are rows of a matrix, null: zeros. From one group
// of k to the next is `pitch`; `to_next` elements behind each row the one lies that will be packed next.
template <class K>
FUSEDLSTM_NOINLINE void pack_rows(typename K::operand* panel, const typename K::storage* const (&from)[K::kLanes],
                                  int64_t depth, int64_t to_next, int64_t pitch) {
  constexpr int kLanes = K::kLanes;
  const auto square = [&](int64_t k, int64_t n) FUSEDLSTM_LAMBDA {
    // On their way from memory.
    for (int l = 0; l < kLanes; ++l)
      if (from[l]) __builtin_prefetch(from[l] + to_next + k, 0, 2);
    typename K::V v[kLanes];
#pragma GCC unroll 16
    for (int l = 0; l < kLanes; ++l) v[l] = from[l] ? depth_vector<K>(from[l] + k, n) : typename K::V{};
    transpose<K>(v);
    typename K::operand* to = panel + k / K::kDepth * pitch;
    const int64_t groups = (n + K::kDepth - 1) / K::kDepth;
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i)
      if (i < groups) store(to + i * pitch, v[i]);
  };
  constexpr int64_t kStep = kLanes * K::kDepth;
  int64_t k = 0;
  for (; k + kStep <= depth; k += kStep) square(k, kStep);
  if (k < depth) square(k, depth - k);
}

// Copies n elements from storage to operands and clears up to `padded`.
template <class K>
FUSEDLSTM_INLINE void to_operands(typename K::operand* to, const typename K::storage* from, int64_t n, int64_t padded) {
  for (int64_t i = 0; i < padded; i += K::kLanes) {
    typename K::V v{};
    if (from && i < n) v = K::load(from + i, n - i);
    K::store_operand(to + i, v, padded - i);
  }
}

// How many tiles of at most kRows rows there are in n rows. They are as even as can be: a tile of few rows costs more
// for each of them.
template <int kRows>
constexpr int64_t tiles_of(int64_t n) {
  return (n + kRows - 1) / kRows;
}

// Runs body(first row, number of rows) for every tile of `rows` rows.
template <int kRows, class Body>
FUSEDLSTM_INLINE void for_each_tile(int64_t rows, Body body) {
  const int64_t tiles = tiles_of<kRows>(rows);
  for (int64_t i = 0; i < tiles; ++i) {
    const Range tile = part(rows, i, tiles);
    body(tile.begin, int(tile.end - tile.begin));
  }
}

inline constexpr int64_t kDepthBlock = 1024;  // a panel of it fills a quarter of a usual L2 cache

}  // namespace fusedlstm::cpu
