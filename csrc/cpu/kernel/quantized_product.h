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

// Instruction sets as they multiply bytes. kMaxRows: of a tile, whose sums fit into registers; kSumsInFlight: that hide
// the latency of `dot`, which adds four products to each int32.
//
// Four products each of signed bytes, by two multiplications of 16 bits; on other processors lane by lane.
struct QuantizedBaseline : Baseline {
  static constexpr bool kIsUnsigned = false;
  static constexpr int kMaxRows = 2, kSumsInFlight = 1;
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
  static constexpr int kMaxRows = 5, kSumsInFlight = 1;
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
  static constexpr int kMaxRows = 5, kSumsInFlight = 1;
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
  static constexpr int kMaxRows = 6, kSumsInFlight = 8;
  using Sums = Vector<Avx2, int32_t>;

  static FUSEDLSTM_INLINE Sums dot(Sums sum, Sums x, Sums w) {
    return Sums(_mm256_dpbusd_avx_epi32(__m256i(sum), __m256i(x), __m256i(w)));
  }
};
#endif

#if defined(__AVX512VNNI__)
struct QuantizedAvx512Vnni : Avx512 {
  static constexpr bool kIsUnsigned = true;
  static constexpr int kMaxRows = 8, kSumsInFlight = 8;
  using Sums = Vector<Avx512, int32_t>;

  static FUSEDLSTM_INLINE Sums dot(Sums sum, Sums x, Sums w) {
    return Sums(_mm512_dpbusd_epi32(__m512i(sum), __m512i(x), __m512i(w)));
  }
};
#endif

// to[r][unit] = sum over k of rows[r][k] * panel[k][unit], int32. `groups` of four k.
struct ByteFactors {
  int32_t (*to)[kQuantizedUnits];
  const int8_t* const* rows;
  const int8_t* panel;
  int64_t groups;
};

template <class Isa, int kRows>
FUSEDLSTM_NOINLINE void multiply_byte_tile(const ByteFactors& f) {
  using Sums = typename Isa::Sums;
  constexpr int kLanesOfSums = Isa::kVectorBytes / int(sizeof(int32_t)), kVectors = kQuantizedUnits / kLanesOfSums;
  constexpr int kAtOnce = kRows * kVectors;
  constexpr int kParts = kAtOnce >= Isa::kSumsInFlight ? 1 : Isa::kSumsInFlight / kAtOnce;  // of k, summed apart
  constexpr int kUnroll = kRows <= 2 && kParts < 4 ? 4 : kParts;
  constexpr int64_t kPitch = kQuantizedUnits * kByteDepth;
  constexpr int64_t kAhead = 8192;  // bytes on their way from memory, of the next panels near the end of one
  const int8_t* rows[kRows];
  for (int r = 0; r < kRows; ++r) rows[r] = f.rows[r];
  Sums sums[kParts][kRows][kVectors];
  for (auto& part : sums)
    for (auto& row : part)
      for (auto& sum : row) sum = Sums{};
  const auto add = [&](int64_t k, Sums(&to)[kRows][kVectors]) FUSEDLSTM_LAMBDA {
    Sums w[kVectors];
    if constexpr (kRows == 1) __builtin_prefetch(f.panel + k * kPitch + kAhead);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) w[v] = load<Sums>(f.panel + k * kPitch + v * Isa::kVectorBytes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      int32_t four;
      __builtin_memcpy(&four, rows[r] + k * kByteDepth, sizeof four);
      const Sums x = Sums{} + four;
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) to[r][v] = Isa::dot(to[r][v], x, w[v]);
    }
  };
  int64_t k = 0;
  for (; k + kUnroll <= f.groups; k += kUnroll)
#pragma GCC unroll 8
    for (int u = 0; u < kUnroll; ++u) add(k + u, sums[u % kParts]);
  for (; k < f.groups; ++k) add(k, sums[0]);
#pragma GCC unroll 8
  for (int part = 1; part < kParts; ++part)
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVectors; ++v) sums[0][r][v] += sums[part][r][v];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) store(f.to[r] + v * kLanesOfSums, sums[0][r][v]);
}

// For 1 .. kMaxRows `rows`.
template <class Isa, int kRows = Isa::kMaxRows>
void multiply_bytes(const ByteFactors& f, int rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return multiply_bytes<Isa, kRows - 1>(f, rows);
  }
  multiply_byte_tile<Isa, kRows>(f);
}

}  // namespace fusedlstm::cpu
