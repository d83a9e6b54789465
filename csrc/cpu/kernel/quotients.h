// sigmoid and tanh as quotients that are not divided yet. A cell multiplies most of them with something: one division
// does for both factors, and as many roundings less.
#pragma once

#include "short_math.h"

namespace fusedlstm::cpu {

// 1 / below
template <class V>
struct Reciprocal {
  V below;
  FUSEDLSTM_INLINE operator V() const { return 1.0f / below; }
};
template <class V>
struct Quotient {
  V above, below;
  FUSEDLSTM_INLINE operator V() const { return above / below; }
};
template <class V>
FUSEDLSTM_INLINE V operator*(Reciprocal<V> a, V b) {
  return b / a.below;
}
// What is below both may be infinite: the product is then 0, and not as small as numbers get.
template <class V>
FUSEDLSTM_INLINE V operator*(Reciprocal<V> a, Quotient<V> b) {
  return b.above / (a.below * b.below);
}

// The `Math` of cell.h.
template <class Isa>
struct QuotientMath : ShortMath<Isa> {
  using Base = ShortMath<Isa>;
  using V = typename Base::V;

  static FUSEDLSTM_INLINE Reciprocal<V> sigmoid(V x) { return {Base::below_sigmoid(x)}; }
  static FUSEDLSTM_INLINE Quotient<V> tanh(V x) {
    const V expm1 = Base::expm1_of_twice(x);
    return {expm1, expm1 + 2.0f};
  }
  static FUSEDLSTM_INLINE V rounded_product(Reciprocal<V> a, Quotient<V> b) { return a * b; }
};

}  // namespace fusedlstm::cpu
