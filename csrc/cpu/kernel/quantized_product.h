// Products of bytes: rows that were quantized to 8 bits by int8 weights, summed exactly in int32.
//
// A panel holds the weights of kQuantizedUnits units of one gate, for every group of four k those of each unit:
// panel[k / 4][unit][4]. It is the same on every instruction set, so that a module's weights are read as they are, from
// beginning to end.
//
// Whatever multiplies them, sums are the same. As bytes rows are 0 .. 255 where the instruction takes the one factor
// unsigned, else by 128 less: a sum then differs by a multiple of that of the weights, as it does by the row's zero.
#pragma once

#include "pack.h"

namespace fusedlstm::cpu {

inline constexpr int kQuantizedUnits = 16;  // of a panel
inline constexpr int kByteDepth = 4;        // elements of k in a lane

// Instruction sets as they multiply bytes. A tile is of up to kMaxRows rows and kMaxPanels panels, whose sums fit into
// registers; kSumsInFlight: that hide the latency of `dot`, which adds four products to each int32.
//
// Four products each of signed bytes, by two multiplications of 16 bits; on other processors lane by lane.
struct QuantizedBaseline : Baseline {
  static constexpr bool kIsUnsigned = false;
  static constexpr int kMaxRows = 2, kMaxPanels = 1, kSumsInFlight = 1;
  using Sums = Vector<Baseline, int32_t>;

  static FUSEDLSTM_INLINE Sums dot(Sums sum, Sums x, Sums w) {
#if defined(__x86_64__)
    using Pairs = Vector<Baseline, int16_t>;
    const auto even = [](Sums v) { return __m128i((bits<Pairs>(v) << 8) >> 8); };
    const auto odd = [](Sums v) { return __m128i(bits<Pairs>(v) >> 8); };
    return sum + Sums(_mm_madd_epi16(even(x), even(w))) + Sums(_mm_madd_epi16(odd(x), odd(w)));
#else
    for (int shift = 0; shift < 32; shift += 8) sum += ((x << shift) >> 24) * ((w << shift) >> 24);
    return sum;
#endif
  }
};

#if defined(__AVX2__)
// The instruction multiplies unsigned by signed bytes and saturates the sum of two products: of |x|, at most 128, and
// w with the sign of x, at most 127, that is 32512, which fits.
struct QuantizedAvx2 : Avx2 {
  static constexpr bool kIsUnsigned = false;
  static constexpr int kMaxRows = 5, kMaxPanels = 1, kSumsInFlight = 1;
  using Sums = Vector<Avx2, int32_t>;

  static FUSEDLSTM_INLINE Sums dot(Sums sum, Sums x, Sums w) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(__m256i(x)), _mm256_sign_epi8(__m256i(w), __m256i(x)));
    return sum + Sums(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
};

// The same of weights of reduced range, -64 .. 64: two products with unsigned bytes come to 32640 at most, and signs
// may stay where they are.
struct QuantizedAvx2Reduced : Avx2 {
  static constexpr bool kIsUnsigned = true;
  static constexpr int kMaxRows = 5, kMaxPanels = 1, kSumsInFlight = 1;
  using Sums = Vector<Avx2, int32_t>;

  static FUSEDLSTM_INLINE Sums dot(Sums sum, Sums x, Sums w) {
    const __m256i pairs = _mm256_maddubs_epi16(__m256i(x), __m256i(w));
    return sum + Sums(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
};
#endif

#if defined(__AVXVNNI__)
struct QuantizedAvxVnni : Avx2 {
  static constexpr bool kIsUnsigned = true;
  static constexpr int kMaxRows = 6, kMaxPanels = 1, kSumsInFlight = 8;
  using Sums = Vector<Avx2, int32_t>;

  static FUSEDLSTM_INLINE Sums dot(Sums sum, Sums x, Sums w) {
    return Sums(_mm256_dpbusd_avx_epi32(__m256i(sum), __m256i(x), __m256i(w)));
  }
};
#endif

#if defined(__AVX512VNNI__)
struct QuantizedAvx512Vnni : Avx512 {
  static constexpr bool kIsUnsigned = true;
  static constexpr int kMaxRows = 6, kMaxPanels = 4, kSumsInFlight = 16;
  using Sums = Vector<Avx512, int32_t>;

  static FUSEDLSTM_INLINE Sums dot(Sums sum, Sums x, Sums w) {
    return Sums(_mm512_dpbusd_epi32(__m512i(sum), __m512i(x), __m512i(w)));
  }
};
#endif

// to[panel][r][unit] = sum over k of rows[r][k] * panels[panel][k][unit], int32.
struct ByteFactors {
  int32_t (*to)[kQuantizedUnits];
  int64_t to_rows;  // from one panel to the next
  const int8_t* rows;
  int64_t width;         // from one row to the next
  const int8_t* panels;  // one after another
  int64_t groups;        // of four k

  constexpr const int8_t* panel(int64_t index) const { return panels + index * groups * kQuantizedUnits * kByteDepth; }
};

// On their way from memory where one row reads one panel: of the next panels near the end of one. As far as its latency
// asks for: with more of them under way, reading takes longer.
inline constexpr int64_t kBytesAhead = 2048;

template <class Isa, int kRows, int kPanels>
FUSEDLSTM_NOINLINE void multiply_byte_tile(const ByteFactors& f) {
  using Sums = typename Isa::Sums;
  constexpr int kLanesOfSums = Isa::kVectorBytes / int(sizeof(int32_t)), kVectors = kQuantizedUnits / kLanesOfSums;
  constexpr int kAtOnce = kRows * kPanels * kVectors;
  constexpr int kParts = (Isa::kSumsInFlight + kAtOnce - 1) / kAtOnce;  // of k, summed apart
  constexpr int kUnroll = kRows <= 2 && kParts < 4 ? 4 : kParts;
  constexpr int64_t kPitch = kQuantizedUnits * kByteDepth;
  const int8_t *rows[kRows], *panels[kPanels];
  for (int r = 0; r < kRows; ++r) rows[r] = f.rows + r * f.width;
  for (int p = 0; p < kPanels; ++p) panels[p] = f.panel(p);
  struct Tile {
    Sums sum[kRows][kPanels][kVectors];
  } tiles[kParts];
  for (Tile& tile : tiles)
    for (auto& row : tile.sum)
      for (auto& panel : row)
        for (auto& sum : panel) sum = Sums{};
  const auto add = [&](int64_t k, Tile& tile) FUSEDLSTM_LAMBDA {
    Sums w[kPanels][kVectors];
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      if constexpr (kRows == 1 && kPanels == 1) __builtin_prefetch(panels[p] + k * kPitch + kBytesAhead);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        w[p][v] = load<Sums>(panels[p] + k * kPitch + v * Isa::kVectorBytes);
        // Else GCC makes it an operand in memory of each row's product: as many loads.
        if constexpr (kRows > 1) keep_in_register(w[p][v]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      int32_t four;
      __builtin_memcpy(&four, rows[r] + k * kByteDepth, sizeof four);
      const Sums x = Sums{} + four;
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) tile.sum[r][p][v] = Isa::dot(tile.sum[r][p][v], x, w[p][v]);
    }
  };
  int64_t k = 0;
  for (; k + kUnroll <= f.groups; k += kUnroll)
#pragma GCC unroll 8
    for (int u = 0; u < kUnroll; ++u) add(k + u, tiles[u % kParts]);
  for (; k < f.groups; ++k) add(k, tiles[0]);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)  // unrolled: else all sums go to the stack and back before they are added
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 8
        for (int part = 1; part < kParts; ++part) tiles[0].sum[r][p][v] += tiles[part].sum[r][p][v];
        store(f.to[p * f.to_rows + r] + v * kLanesOfSums, tiles[0].sum[r][p][v]);
      }
}

// For 1 .. kMaxRows `rows`.
template <class Isa, int kPanels, int kRows = Isa::kMaxRows>
void multiply_byte_rows(const ByteFactors& f, int rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return multiply_byte_rows<Isa, kPanels, kRows - 1>(f, rows);
  }
  multiply_byte_tile<Isa, kRows, kPanels>(f);
}

// What a thread multiplies with.
template <class Isa>
struct ByteProducts {
  static constexpr int kMaxRows = Isa::kMaxRows, kMaxPanels = Isa::kMaxPanels;

  // For 1 .. kMaxRows `rows`.
  template <int kPanels>
  void multiply(const ByteFactors& f, int rows) {
    multiply_byte_rows<Isa, kPanels>(f, rows);
  }
};

}  // namespace fusedlstm::cpu
