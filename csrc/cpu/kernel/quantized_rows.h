// Rows of float32 as bytes: each by itself, when it enters a product.
#pragma once

#include "quantized_product.h"
#include "quotients.h"

namespace fusedlstm::cpu {

// What a row's bytes mean: (byte - zero) * scale.
struct RowScale {
  float scale;
  int32_t zero;
};

// Float32 around the products.
template <class Isa>
struct QuantizedKit : Kit<Isa, Full<float>, FullProduct<float>> {
  using Math = QuotientMath<Isa>;
  static constexpr bool kTrains = false;
};

// Bytes of a row of so many elements: whole vectors of any set, and whole groups.
constexpr int64_t bytes_of_row(int64_t elements) {
  return round_up(elements, kQuantizedUnits);
}

// What `f` makes of all lanes, two vectors at a time; the steps are constants, as indices of shuffles must be.
template <class K, int kStep = K::kLanes / 2, class F>
FUSEDLSTM_INLINE float across_lanes(typename K::V v, F f) {
  if constexpr (kStep == 0) {
    return v[0];
  } else {
    Vector<typename K::Isa, int32_t> other{};
#pragma GCC unroll 16
    for (int l = 0; l < K::kLanes; ++l) other[l] = l ^ kStep;
    return across_lanes<K, kStep / 2>(f(v, __builtin_shuffle(v, other)), f);
  }
}

// a * b of integers of which the lower 16 bits count, as signed ones; the upper ones of `a` are zeros. One instruction
// where there are vectors of pairs; a product of 32 bits takes two of twice its latency.
template <class Integers>
FUSEDLSTM_INLINE Integers low_product(Integers a, int32_t b) {
  const Integers all = Integers{} + b;
#if defined(__AVX512BW__)
  if constexpr (sizeof(Integers) == 64) return Integers(_mm512_madd_epi16(__m512i(a), __m512i(all)));
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(Integers) == 32) return Integers(_mm256_madd_epi16(__m256i(a), __m256i(all)));
#endif
#if defined(__x86_64__)
  if constexpr (sizeof(Integers) == 16) return Integers(_mm_madd_epi16(__m128i(a), __m128i(all)));
#endif
  return ((a << 16) >> 16) * all;
}

// The lowest byte of each of 16 integers, all of which fit into one. Compilers make it lane by lane.
template <class K, class Integers, int kVectors>
FUSEDLSTM_INLINE void store_bytes(int8_t* to, const Integers (&v)[kVectors]) {
  static_assert(kVectors * K::kLanes == kQuantizedUnits);
#if defined(__x86_64__)
  const auto bytes_of = [](__m128i low, __m128i high) {
    return K::Isa::kIsUnsigned ? _mm_packus_epi16(low, high) : _mm_packs_epi16(low, high);
  };
#endif
#if defined(__AVX512F__)
  if constexpr (kVectors == 1) return store(to, _mm512_maskz_cvtepi32_epi8(__mmask16(-1), __m512i(v[0])));
#endif
#if defined(__AVX2__)
  if constexpr (kVectors == 2) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(__m256i(v[0]), __m256i(v[1])), 0xd8);
    return store(to, bytes_of(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
  }
#endif
#if defined(__x86_64__)
  if constexpr (kVectors == 4)
    return store(
        to, bytes_of(_mm_packs_epi32(__m128i(v[0]), __m128i(v[1])), _mm_packs_epi32(__m128i(v[2]), __m128i(v[3]))));
#endif
  for (int i = 0; i < kQuantizedUnits; ++i) to[i] = int8_t(v[i / K::kLanes][i % K::kLanes]);
}

// Writes bytes_of_row(n) bytes. The range is that of the row and 0, so that zeros stay zeros; 255 steps of it. A row
// with a NaN or an infinity has a scale of NaN.
template <class K>
FUSEDLSTM_NOINLINE RowScale quantize_row(int8_t* to, const float* from, int64_t n) {
  using V = typename K::V;
  using Math = typename K::Math;
  using Integers = Vector<typename K::Isa, int32_t>;
  constexpr float kRound = 12582912.0f;     // 1.5 * 2^23: added, and taken off, it rounds to nearest even
  constexpr float kLeastRange = 0x1p-100f;  // 255 divided by it is finite
  V low{}, high{}, lost{};
  for (int64_t k = 0; k < n; k += K::kLanes) {
    const V v = K::load(from + k, n - k);
    low = Math::least(low, v);
    high = Math::greatest(high, v);
    lost += v - v;
  }
  const float lowest = across_lanes<K>(low, Math::least), range = across_lanes<K>(high, Math::greatest) - lowest;
  const bool is_wide = range > kLeastRange;
  const float inverse = is_wide ? 255.0f / range : 0.0f;
  const float zero = (-lowest * inverse + kRound) - kRound;
  const int32_t offset = int32_t(zero) - (K::Isa::kIsUnsigned ? 0 : 128);
  const int32_t bias = offset - __builtin_bit_cast(int32_t, kRound);
  const Integers largest = Integers{} + (255 + offset - int32_t(zero));
  for (int64_t k = 0; k < bytes_of_row(n); k += kQuantizedUnits) {
    Integers bytes[kQuantizedUnits / K::kLanes];
#pragma GCC unroll 4
    for (int q = 0; q < kQuantizedUnits / K::kLanes; ++q) {
      const int64_t at = k + q * K::kLanes;
      const V v = at < n ? K::load(from + at, n - at) : V{};
      const Integers byte = bits<Integers>(v * inverse + kRound) + bias;
      bytes[q] = byte < largest ? byte : largest;
    }
    store_bytes<K>(to + k, bytes);
  }
  const float scale = is_wide ? range / 255.0f : 0.0f;
  return {scale + across_lanes<K>(lost, [](V a, V b) { return a + b; }), offset};
}

}  // namespace fusedlstm::cpu
