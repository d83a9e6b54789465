// Vectors of hidden units, and the element-wise mathematics of the cell, for one instruction set.
//
// Everything is a template on `Isa` and is instantiated only in the source file of that instruction set
// (kernels_<isa>.cpp), so that no function compiled for a wide machine can be linked into the path of a narrow one.
// For the same reason this file and those above it call nothing from the standard library.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fusedlstm::cpu {

#define FUSEDLSTM_INLINE inline __attribute__((always_inline))
#define FUSEDLSTM_LAMBDA __attribute__((always_inline))

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

// Any x86-64 machine, and the portable path on every other: 128-bit vectors without a fused multiply-add.
struct Baseline {
  static constexpr int kVectorBytes = 16;
  static constexpr int kTileRows = 3;  // 3 x 4 accumulators + 3 broadcasts + 1 weight = the 16 registers
};
// AVX2, FMA and F16C (x86-64-v3).
struct Avx2 {
  static constexpr int kVectorBytes = 32;
  static constexpr int kTileRows = 3;
};
// AVX-512 F, BW, VL, DQ (x86-64-v4).
struct Avx512 {
  static constexpr int kVectorBytes = 64;
  static constexpr int kTileRows = 6;  // 6 x 4 accumulators + 4 weights + 1 broadcast = 29 of 32 registers
};
// Avx512 with bfloat16 dot products.
struct Avx512Bf16 : Avx512 {};

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
template <class To, class From>
FUSEDLSTM_INLINE To bits(From v) {
  static_assert(sizeof(To) == sizeof(From));
  return __builtin_bit_cast(To, v);
}

// exp and its relatives by range reduction, x = n ln 2 + r with |r| <= ln 2 / 2, and the Taylor polynomial of
// expm1(r) to the first term below half a unit in the last place. Relative errors of
// sigmoid and tanh, measured from -30 to 30: below 2 eps.
template <class Isa, class T>
struct Exponential;

template <class Isa>
struct Exponential<Isa, float> {
  using V = Vector<Isa, float>;
  using Integer = Vector<Isa, uint32_t>;
  static constexpr int kMantissaBits = 23;
  static constexpr float kLog2E = 1.44269504088896340736f;
  static constexpr float kLn2High = 0.693145751953125f;  // 15 bits, so that n * kLn2High is exact
  static constexpr float kLn2Low = 1.42860682030941723212e-6f;
  static constexpr float kRound = 12582912.0f + 127.0f;  // 1.5 * 2^23 + exponent bias: rounds, and biases n
  static constexpr float kMaxSigmoid = 87.0f;            // exp stays a normal number
  static constexpr float kMaxTanh = 20.0f;               // tanh(10) rounds to 1
  static FUSEDLSTM_INLINE V polynomial(V r) {            // (expm1(r) - r) / r^2
    V q = r * (1.0f / 5040) + 1.0f / 720;
    q = q * r + 1.0f / 120;
    q = q * r + 1.0f / 24;
    q = q * r + 1.0f / 6;
    return q * r + 0.5f;
  }
};

template <class Isa>
struct Exponential<Isa, double> {
  using V = Vector<Isa, double>;
  using Integer = Vector<Isa, uint64_t>;
  static constexpr int kMantissaBits = 52;
  static constexpr double kLog2E = 1.44269504088896340736;
  static constexpr double kLn2High = 6.93147180369123816490e-01;  // 33 bits
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kRound = 6755399441055744.0 + 1023.0;
  static constexpr double kMaxSigmoid = 708.0;
  static constexpr double kMaxTanh = 44.0;
  static FUSEDLSTM_INLINE V polynomial(V r) {
    V q = r * (1.0 / 6227020800) + 1.0 / 479001600;
    q = q * r + 1.0 / 39916800;
    q = q * r + 1.0 / 3628800;
    q = q * r + 1.0 / 362880;
    q = q * r + 1.0 / 40320;
    q = q * r + 1.0 / 5040;
    q = q * r + 1.0 / 720;
    q = q * r + 1.0 / 120;
    q = q * r + 1.0 / 24;
    q = q * r + 1.0 / 6;
    return q * r + 0.5;
  }
};

// The `Math` of cell.h for a vector of T. NaN in, NaN out; +-infinity saturates.
template <class Isa, class T>
struct VectorMath {
  using E = Exponential<Isa, T>;
  using V = typename E::V;
  static constexpr T kOne = 1;

  static FUSEDLSTM_INLINE V clamp(V x, T limit) {  // comparisons with NaN are false: NaN passes
    const V high = V{} + limit;
    x = x > high ? high : x;
    return x < -high ? -high : x;
  }
  // scale = 2^n and fraction = expm1(r), so that exp(x) = scale * (fraction + 1).
  static FUSEDLSTM_INLINE void reduce(V x, V& scale, V& fraction) {
    const V shifted = x * E::kLog2E + E::kRound;
    scale = bits<V>(bits<typename E::Integer>(shifted) << E::kMantissaBits);
    const V n = shifted - E::kRound;
    const V r = (x - n * E::kLn2High) - n * E::kLn2Low;
    fraction = E::polynomial(r) * (r * r) + r;
  }
  static FUSEDLSTM_INLINE V reciprocal(V x) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4 && Isa::kVectorBytes == 64) {
      // 14 good bits and one Newton step: 1 ulp, at a third of the cost of a division.
      const V y = bits<V>(_mm512_maskz_rcp14_ps(__mmask16(-1), bits<__m512>(x)));
      return y * (T(1) - x * y) + y;
    }
#endif
    return T(1) / x;
  }
  static FUSEDLSTM_INLINE V sigmoid(V x) {
    V scale, fraction;
    reduce(-clamp(x, E::kMaxSigmoid), scale, fraction);
    return reciprocal((scale * fraction + scale) + T(1));
  }
  static FUSEDLSTM_INLINE V tanh(V x) {  // by expm1, so that small x keep their relative precision
    V scale, fraction;
    reduce(clamp(x + x, E::kMaxTanh), scale, fraction);
    const V expm1 = scale * fraction + (scale - T(1));
    const V divisor = expm1 + T(2), inverse = reciprocal(divisor);
    const V quotient = expm1 * inverse;
    return quotient + inverse * (expm1 - quotient * divisor);  // the error of reciprocal and product, taken back
  }
};

}  // namespace fusedlstm::cpu
