// sigmoid and tanh with a third fewer operations than simd.h has, for layers whose products are of 8 or 16 bits.
// Errors, absolute: below 1.2e-7, beside which that of such a number is large; tanh of a small number keeps its
// relative precision.
#pragma once

#include "simd.h"

namespace fusedlstm::cpu {

// The `Math` of cell.h. NaN in, NaN out; +-infinity saturates. Int8 layers are compiled without fused multiply-adds:
// every operation is then rounded by itself, and results are the same on every instruction set.
template <class Isa>
struct ShortMath : VectorMath<Isa, float> {
  using Base = VectorMath<Isa, float>;
  using E = Exponential<float>;
  using V = Vector<Isa, float>;
  using Integer = Vector<Isa, uint32_t>;

  // (2^x - 1) / x for |x| <= 1/2: its interpolation at the Chebyshev nodes, relative error 4.9e-7.
  static constexpr float kPolynomial[] = {0.6931471805599454f, 0.24022349038020355f, 0.0555038101379658f,
                                          0.009666368515385883f, 0.0013381302537283154f};

  // scale = 2^n and fraction = 2^r - 1, so that 2^x = scale * fraction + scale.
  static FUSEDLSTM_INLINE void reduce(V x, V& scale, V& fraction) {
    const V shifted = x + E::kRound;
    scale = bits<V>(bits<Integer>(shifted) << E::kMantissaBits);
    const V r = x - (shifted - E::kRound);
    // In parts, for the shortest chain of operations.
    const V r2 = r * r, low = r * kPolynomial[1] + kPolynomial[0], high = r * kPolynomial[3] + kPolynomial[2];
    fraction = ((r2 * kPolynomial[4] + high) * r2 + low) * r;
  }
  // 1 + e^-x
  static FUSEDLSTM_INLINE V below_sigmoid(V x) {
    V scale, fraction;
    reduce(Base::clamp(x, E::kMaxSigmoid) * -E::kLog2E, scale, fraction);
    return scale * fraction + (scale + 1.0f);
  }
  // e^2x - 1
  static FUSEDLSTM_INLINE V expm1_of_twice(V x) {
    V scale, fraction;
    reduce(Base::clamp(x, E::kMaxTanh) * (2 * E::kLog2E), scale, fraction);
    return scale * fraction + (scale - 1.0f);
  }
  static FUSEDLSTM_INLINE V sigmoid(V x) { return 1.0f / below_sigmoid(x); }
  static FUSEDLSTM_INLINE V tanh(V x) {
    const V expm1 = expm1_of_twice(x);
    return expm1 / (expm1 + 2.0f);
  }
  static FUSEDLSTM_INLINE V accurate_tanh(V x) { return tanh(x); }
};

}  // namespace fusedlstm::cpu
