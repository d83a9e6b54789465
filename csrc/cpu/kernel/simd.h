// Vectors of hidden units, and the element-wise mathematics of the cell, for one instruction set.
//
// Everything is a template on `Isa` and is instantiated only in the source files of that instruction set
// (cpu/instances/*_<isa>.cpp), so that no function compiled for a wide machine can be linked into the path of a narrow
// one. For the same reason this file and those above it call nothing from the standard library.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace fusedlstm::cpu {

#define FUSEDLSTM_INLINE inline __attribute__((always_inline))
#define FUSEDLSTM_LAMBDA __attribute__((always_inline))
// Of what is called once for a step, a panel, a tile or a row: inlined it costs the compiler more than it saves a call.
#define FUSEDLSTM_NOINLINE __attribute__((noinline))

// A vector register's worth of T.
template <class T, int kBytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(kBytes)));
};
template <class Isa, class T>
using Vector = typename VectorOf<T, Isa::kVectorBytes>::type;

// As many 16-bit integers as a Vector<Isa, uint32_t> has lanes: it widens to one.
template <class Isa>
using HalfVector = typename VectorOf<uint16_t, Isa::kVectorBytes / 2>::type;

// The sums of a tile of products (product.h) fill most of the registers: kTileRows rows by kStripVectors vectors, or
// kTileRowsOfThree by three.
//
// Any x86-64 machine, and the portable path on every other: 128-bit vectors without a fused multiply-add.
struct Baseline {
  static constexpr int kVectorBytes = 16;
  static constexpr int kStripVectors = 2, kTileRows = 6;  // 12 sums + 2 weights + 1 broadcast + 1 product
  static constexpr int kTileRowsOfThree = 4;
  static constexpr int kDirectSums = 8;  // vectors that direct.h adds up at once: half of the registers
};
// Any aarch64 machine: 32 registers, and a fused multiply-add that takes one lane of a vector for all.
struct Neon {
  static constexpr int kVectorBytes = 16;
  static constexpr int kStripVectors = 4, kTileRows = 6;  // 24 sums + 4 weights + 1 element, of 32 registers
  static constexpr int kTileRowsOfThree = 6;
  static constexpr int kDirectSums = 16;
};
// AVX2, FMA and F16C (x86-64-v3).
struct Avx2 {
  static constexpr int kVectorBytes = 32;
  static constexpr int kStripVectors = 2, kTileRows = 6;  // 12 sums + 2 weights + 2 broadcasts
  static constexpr int kTileRowsOfThree = 4;
  static constexpr int kDirectSums = 8;
};
// AVX-512 F, BW, VL, DQ (x86-64-v4).
struct Avx512 {
  static constexpr int kVectorBytes = 64;
  static constexpr int kStripVectors = 4, kTileRows = 6;  // 24 sums + 4 weights + 1 broadcast, of 32 registers
  static constexpr int kTileRowsOfThree = 8;              // as many sums
  static constexpr int kDirectSums = 16;
};
// Avx512 with bfloat16 dot products.
struct Avx512Bf16 : Avx512 {};
// The same with the tile registers of AMX (tile_registers.h), by which 32 rows are multiplied at once.
struct Avx512Amx : Avx512Bf16 {
  static constexpr int kTileRows = 32, kTileRowsOfThree = 32;
};
template <class Isa>
inline constexpr bool kHasTiles = false;
template <>
inline constexpr bool kHasTiles<Avx512Amx> = true;

template <class V, class T>
FUSEDLSTM_INLINE V load(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class V, class T>
FUSEDLSTM_INLINE void store(T* p, V v) {
  __builtin_memcpy(p, &v, sizeof v);
}
template <class V, class T>
FUSEDLSTM_INLINE void add(T* p, V v) {
  store(p, load<V>(p) + v);
}
// A value that is whole from here on: the compiler contracts none of what made it with what it goes into.
template <class V>
FUSEDLSTM_INLINE void keep_in_register([[maybe_unused]] V& v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#endif
}
template <class To, class From>
FUSEDLSTM_INLINE To bits(From v) {
  static_assert(sizeof(To) == sizeof(From));
  return __builtin_bit_cast(To, v);
}

// exp and its relatives by range reduction, x = n ln 2 + r with |r| <= ln 2 / 2, and a polynomial for
// (expm1(r) - r) / r^2: its interpolation at the Chebyshev nodes of that interval. Relative errors of sigmoid and tanh,
// measured from -30 to 30: below 1.6 eps.
template <class T>
struct Exponential;

template <>
struct Exponential<float> {
  using Integer = uint32_t;
  static constexpr int kMantissaBits = 23;
  static constexpr float kLog2E = 1.44269504088896340736f;
  static constexpr float kLn2High = 0.693145751953125f;  // 15 bits, so that n * kLn2High is exact
  static constexpr float kLn2Low = 1.42860682030941723212e-6f;
  static constexpr float kRound = 12582912.0f + 127.0f;  // 1.5 * 2^23 + exponent bias: rounds, and biases n
  static constexpr float kMaxSigmoid = 87.0f;            // exp stays a normal number
  static constexpr float kMaxTanh = 10.0f;               // tanh(10) rounds to 1
  static constexpr int kDegree = 4;                      // error of expm1: 8.1e-9
  static constexpr float kPolynomial[] = {0.5f, 0.16666576266288757f, 0.041666556149721146f, 0.008363177999854088f,
                                          0.0013926181709393859f};
};

template <>
struct Exponential<double> {
  using Integer = uint64_t;
  static constexpr int kMantissaBits = 52;
  static constexpr double kLog2E = 1.44269504088896340736;
  static constexpr double kLn2High = 6.93147180369123816490e-01;  // 33 bits
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kRound = 6755399441055744.0 + 1023.0;
  static constexpr double kMaxSigmoid = 708.0;
  static constexpr double kMaxTanh = 22.0;
  static constexpr int kDegree = 9;  // error of expm1: 1.3e-17
  static constexpr double kPolynomial[] = {0.5000000000000001,     0.16666666666666669,    0.041666666666624136,
                                           0.008333333333330063,   0.001388888891720967,   0.00019841269863050506,
                                           2.4801521302241082e-05, 2.7557268464831627e-06, 2.7620085455018414e-07,
                                           2.510038319586702e-08};
};

// The `Math` of cell.h for a vector of T. NaN in, NaN out; +-infinity saturates.
template <class Isa, class T>
struct VectorMath {
  using E = Exponential<T>;
  using V = Vector<Isa, T>;
  using Integer = Vector<Isa, typename E::Integer>;
  static constexpr T kOne = 1;

  // Not contracted with what it is added to; on processors other than x86 the compiler decides.
  static FUSEDLSTM_INLINE V rounded_product(V a, V b) {
    V product = a * b;
    keep_in_register(product);
    return product;
  }
  // NaN where the second is. From comparisons written out GCC makes two instructions for each.
  static FUSEDLSTM_INLINE V least(V a, V b) {
#if defined(__AVX512F__)
    // All lanes; the unmasked forms draw warnings from the header of GCC 12.
    if constexpr (Isa::kVectorBytes == 64 && sizeof(T) == 4) return V(_mm512_maskz_min_ps(-1, __m512(a), __m512(b)));
    if constexpr (Isa::kVectorBytes == 64 && sizeof(T) == 8) return V(_mm512_maskz_min_pd(-1, __m512d(a), __m512d(b)));
#endif
#if defined(__AVX__)
    if constexpr (Isa::kVectorBytes == 32 && sizeof(T) == 4) return V(_mm256_min_ps(__m256(a), __m256(b)));
    if constexpr (Isa::kVectorBytes == 32 && sizeof(T) == 8) return V(_mm256_min_pd(__m256d(a), __m256d(b)));
#endif
#if defined(__aarch64__)
    if constexpr (Isa::kVectorBytes == 16 && sizeof(T) == 4) return V(vminq_f32(float32x4_t(a), float32x4_t(b)));
    if constexpr (Isa::kVectorBytes == 16 && sizeof(T) == 8) return V(vminq_f64(float64x2_t(a), float64x2_t(b)));
#endif
    return a < b ? a : b;
  }
  static FUSEDLSTM_INLINE V greatest(V a, V b) {
#if defined(__AVX512F__)
    if constexpr (Isa::kVectorBytes == 64 && sizeof(T) == 4) return V(_mm512_maskz_max_ps(-1, __m512(a), __m512(b)));
    if constexpr (Isa::kVectorBytes == 64 && sizeof(T) == 8) return V(_mm512_maskz_max_pd(-1, __m512d(a), __m512d(b)));
#endif
#if defined(__AVX__)
    if constexpr (Isa::kVectorBytes == 32 && sizeof(T) == 4) return V(_mm256_max_ps(__m256(a), __m256(b)));
    if constexpr (Isa::kVectorBytes == 32 && sizeof(T) == 8) return V(_mm256_max_pd(__m256d(a), __m256d(b)));
#endif
#if defined(__aarch64__)
    if constexpr (Isa::kVectorBytes == 16 && sizeof(T) == 4) return V(vmaxq_f32(float32x4_t(a), float32x4_t(b)));
    if constexpr (Isa::kVectorBytes == 16 && sizeof(T) == 8) return V(vmaxq_f64(float64x2_t(a), float64x2_t(b)));
#endif
    return a > b ? a : b;
  }
  // NaN passes.
  static FUSEDLSTM_INLINE V clamp(V x, T limit) {
    const V high = V{} + limit;
    return greatest(-high, least(high, x));
  }
  // (expm1(kTimes * r) - kTimes * r) / r^2, for r small. kTimes, a power of two or its negative, costs nothing: the
  // coefficients take it up.
  template <int kTimes>
  static FUSEDLSTM_INLINE V polynomial(V r) {
    T power = kTimes * kTimes;
    for (int k = 0; k < E::kDegree; ++k) power *= kTimes;
    V q = V{} + E::kPolynomial[E::kDegree] * power;
#pragma GCC unroll 10
    for (int k = E::kDegree - 1; k >= 0; --k) {
      power /= kTimes;
      q = q * r + E::kPolynomial[k] * power;
    }
    return q;
  }
  // scale = 2^n and fraction = expm1(kTimes * r), so that exp(kTimes * x) = scale * (fraction + 1).
  template <int kTimes>
  static FUSEDLSTM_INLINE void reduce(V x, V& scale, V& fraction) {
    const V shifted = x * (kTimes * E::kLog2E) + E::kRound;
    scale = bits<V>(bits<Integer>(shifted) << E::kMantissaBits);
    const V n = shifted - E::kRound;
    const V r = (x - n * (E::kLn2High / kTimes)) - n * (E::kLn2Low / kTimes);
    // Not as products: GCC would choose anew in every copy which of two goes into the fused multiply-add.
    static_assert(kTimes == -1 || kTimes == 2);
    const V linear = kTimes == -1 ? -r : r + r;
    fraction = polynomial<kTimes>(r) * (r * r) + linear;
  }
  // Divisions run beside the multiply-adds, and are faster here than an estimate with a Newton step.
  static FUSEDLSTM_INLINE V sigmoid(V x) {
    V scale, fraction;
    reduce<-1>(clamp(x, E::kMaxSigmoid), scale, fraction);
    const V exp = scale * fraction + scale, sum = exp + T(1), y = T(1) / sum;
    const V lost = exp - (sum - T(1));  // in rounding the sum; taken back, it is worth a sixth of the error
    return y - lost * (y * y);
  }
  static FUSEDLSTM_INLINE V tanh(V x) {  // by expm1, so that small x keep their relative precision
    V scale, fraction;
    reduce<2>(clamp(x, E::kMaxTanh), scale, fraction);
    const V expm1 = scale * fraction + (scale - T(1));
    return expm1 / (expm1 + T(2));
  }
  // tanh with what each rounding loses taken back at the end, for a cell whose state is a tanh itself: its root mean
  // square error is that of correct rounding, half of that of `tanh`.
  static FUSEDLSTM_INLINE V accurate_tanh(V x) {
    x = clamp(x, E::kMaxTanh);
    const V shifted = x * (2 * E::kLog2E) + E::kRound;
    const V scale = bits<V>(bits<Integer>(shifted) << E::kMantissaBits), n = shifted - E::kRound;
    const V high = x - n * (E::kLn2High / 2), r = high - n * (E::kLn2Low / 2);
    const V r_lost = (high - r) - n * (E::kLn2Low / 2);
    const V curve = polynomial<2>(r) * (r * r), linear = r + r, fraction = curve + linear;
    const V fraction_lost = (linear - fraction) + curve + (r_lost + r_lost);
    const V above = scale - T(1), expm1 = scale * fraction + above;
    const V expm1_lost = scale * fraction + (above - expm1) + scale * fraction_lost;
    const V sum = expm1 + T(2), y = expm1 / sum;
    const V sum_lost = (expm1 - (sum - T(2))) + expm1_lost;
    V lost = expm1_lost - y * sum_lost;
#if !defined(__x86_64__) || defined(__FMA__)
    lost += expm1 - y * sum;  // in the division; fused, or it would be nothing but the product's rounding
#endif
    return y + lost * (T(0.5) - y * T(0.5));  // 1 / sum is (1 - y) / 2
  }
};

}  // namespace fusedlstm::cpu
