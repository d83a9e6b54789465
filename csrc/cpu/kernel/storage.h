// The four dtypes as vectors: loads and stores with conversion, whole or of the first n lanes only.
#pragma once

#include "simd.h"

namespace fusedlstm::cpu {

// The first n lanes where no instruction masks the others. Long and rare, so not inlined; `static`, since the linker
// may keep one copy of a function that is a template but not on `Isa` for all instruction sets.
template <class V, class T>
static FUSEDLSTM_NOINLINE V load_first(const T* p, int64_t n) {
  V v{};
  for (int64_t i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
template <class V, class T>
static FUSEDLSTM_NOINLINE void store_first(T* p, V v, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = v[i];
}

// Loads n elements (all lanes when n is at least that many); missing lanes are 0.
template <class V, class T>
FUSEDLSTM_INLINE V load_some(const T* p, int64_t n) {
  constexpr int64_t kCount = sizeof(V) / sizeof(T);
  if (n >= kCount) return load<V>(p);
#if defined(__AVX512VL__)
  if constexpr (sizeof(V) == 64 && sizeof(T) == 4)
    return bits<V>(_mm512_maskz_loadu_epi32(__mmask16((1u << n) - 1), p));
  if constexpr (sizeof(V) == 64 && sizeof(T) == 8) return bits<V>(_mm512_maskz_loadu_epi64(__mmask8((1u << n) - 1), p));
  if constexpr (sizeof(V) == 32 && sizeof(T) == 2)
    return bits<V>(_mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), p));
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(V) == 32 && sizeof(T) == 4) {
    const __m256i lanes = _mm256_cmpgt_epi32(_mm256_set1_epi32(int(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    return bits<V>(_mm256_maskload_epi32(reinterpret_cast<const int*>(p), lanes));
  }
  if constexpr (sizeof(V) == 32 && sizeof(T) == 8) {
    const __m256i lanes = _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
    return bits<V>(_mm256_maskload_epi64(reinterpret_cast<const long long*>(p), lanes));
  }
#endif
  return load_first<V>(p, n);
}

template <class V, class T>
FUSEDLSTM_INLINE void store_some(T* p, V v, int64_t n) {
  constexpr int64_t kCount = sizeof(V) / sizeof(T);
  if (n >= kCount) return store(p, v);
#if defined(__AVX512VL__)
  if constexpr (sizeof(V) == 64 && sizeof(T) == 4)
    return _mm512_mask_storeu_epi32(p, __mmask16((1u << n) - 1), bits<__m512i>(v));
  if constexpr (sizeof(V) == 64 && sizeof(T) == 8)
    return _mm512_mask_storeu_epi64(p, __mmask8((1u << n) - 1), bits<__m512i>(v));
  if constexpr (sizeof(V) == 32 && sizeof(T) == 2)
    return _mm256_mask_storeu_epi16(p, __mmask16((1u << n) - 1), bits<__m256i>(v));
#endif
  store_first(p, v, n);
}

// The first n lanes of v (all when n is at least that many), and zeros.
template <class V>
FUSEDLSTM_INLINE V first_lanes(V v, int64_t n) {
  using T = std::remove_reference_t<decltype(v[0])>;
  constexpr int64_t kCount = sizeof(V) / sizeof(T);
  if (n >= kCount) return v;  // and does not wait for memory
  alignas(V) T lanes[kCount];
  store(lanes, v);
  return load_some<V>(lanes, n);
}

// float32 and float64: stored as they are computed.
template <class T>
struct Full {
  using type = T;
  using acc = T;
  template <class Isa>
  static FUSEDLSTM_INLINE Vector<Isa, T> load(const T* p, int64_t n) {
    return load_some<Vector<Isa, T>>(p, n);
  }
  template <class Isa>
  static FUSEDLSTM_INLINE void store(T* p, Vector<Isa, T> v, int64_t n) {
    store_some(p, v, n);
  }
  template <class Isa>
  static FUSEDLSTM_INLINE Vector<Isa, T> round(Vector<Isa, T> v) {
    return v;
  }
};

// 16-bit formats: bit patterns in memory, float in registers, rounded to nearest even.
template <class Format>
struct Half16 {
  using type = uint16_t;
  using acc = float;
  template <class Isa>
  static FUSEDLSTM_INLINE Vector<Isa, float> load(const uint16_t* p, int64_t n) {
    return Format::template widen<Isa>(
        __builtin_convertvector(load_some<HalfVector<Isa>>(p, n), Vector<Isa, uint32_t>));
  }
  template <class Isa>
  static FUSEDLSTM_INLINE void store(uint16_t* p, Vector<Isa, float> v, int64_t n) {
    store_some(p, __builtin_convertvector(Format::template narrow<Isa>(v), HalfVector<Isa>), n);
  }
  template <class Isa>
  static FUSEDLSTM_INLINE Vector<Isa, float> round(Vector<Isa, float> v) {
    return Format::template widen<Isa>(Format::template narrow<Isa>(v));
  }
};

struct BFloat16Storage : Half16<BFloat16Storage> {
  template <class Isa>
  static FUSEDLSTM_INLINE Vector<Isa, float> widen(Vector<Isa, uint32_t> u) {
    return bits<Vector<Isa, float>>(u << 16);
  }
  template <class Isa>
  static FUSEDLSTM_INLINE Vector<Isa, uint32_t> narrow(Vector<Isa, float> v) {
    const auto u = bits<Vector<Isa, uint32_t>>(v);
    const auto rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    return v == v ? rounded : (u >> 16) | 0x40u;  // NaN stays NaN, quiet
  }
};

struct Float16Storage : Half16<Float16Storage> {
  template <class Isa>
  static FUSEDLSTM_INLINE Vector<Isa, float> widen(Vector<Isa, uint32_t> u) {
    using U = Vector<Isa, uint32_t>;
    using V = Vector<Isa, float>;
    const U magnitude = (u & 0x7fffu) << 13;
    // Times 2^112 rebiases the exponent and makes subnormals normal; infinity and NaN need the largest exponent.
    U wide = bits<U>(bits<V>(magnitude) * 0x1p112f);
    wide |= magnitude >= 0x0f800000u ? U{} + 0x7f800000u : U{};
    return bits<V>(wide | ((u & 0x8000u) << 16));
  }
  template <class Isa>
  static FUSEDLSTM_INLINE Vector<Isa, uint32_t> narrow(Vector<Isa, float> v) {
    using U = Vector<Isa, uint32_t>;
    using V = Vector<Isa, float>;
    const U u = bits<U>(v);
    const U magnitude = u & 0x7fffffffu;
    const U normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // Below 2^-14: adding 0.5 leaves the rounded subnormal in the last bits of the sum.
    const U subnormal = bits<U>(bits<V>(magnitude) + 0.5f) - 0x3f000000u;
    U y = magnitude < 0x38800000u ? subnormal : normal;
    y = magnitude >= 0x47800000u ? U{} + 0x7c00u : y;  // 2^16 and above
    y = y > 0x7c00u ? U{} + 0x7c00u : y;               // rounded up to infinity
    y = magnitude > 0x7f800000u ? U{} + 0x7e00u : y;   // NaN
    return y | ((u >> 16) & 0x8000u);
  }
};

}  // namespace fusedlstm::cpu
