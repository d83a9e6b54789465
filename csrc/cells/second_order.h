// Second order of a step, for any cell: how its results and its gradients move when what it takes moves.
//
// A step's gradients are linear in the gradients that arrive: what they are made of, computed in numbers that carry
// their tangent with them, gives both them and their change along the tangents of the sums and of the states before
// (Pearlman 1994, "Fast exact multiplication by the Hessian"). A cell adds only how what it keeps moves: `tangents`.
#pragma once

#include "cell.h"

namespace fusedlstm {

// A number and its tangent.
template <class V>
struct Dual {
  V value, tangent;
};
template <class V>
constexpr Dual<V> operator+(const Dual<V>& a, const Dual<V>& b) {
  return {a.value + b.value, a.tangent + b.tangent};
}
template <class V>
constexpr Dual<V> operator-(const Dual<V>& a, const Dual<V>& b) {
  return {a.value - b.value, a.tangent - b.tangent};
}
template <class V>
constexpr Dual<V> operator*(const Dual<V>& a, const Dual<V>& b) {
  return {a.value * b.value, a.value * b.tangent + a.tangent * b.value};
}
template <class V, class Scalar>
constexpr Dual<V> operator+(const Dual<V>& a, Scalar b) {
  return {a.value + b, a.tangent};
}
template <class V>
constexpr Dual<V> zero_unless_positive(const Dual<V>& h, const Dual<V>& d) {
  return {zero_unless_positive(h.value, d.value), zero_unless_positive(h.value, d.tangent)};
}

// The `Math` of cell.h for dual numbers, as far as derivatives use it.
template <class Math, class V>
struct DualMath {
  static constexpr auto kOne = Math::kOne;
  static constexpr Dual<V> tanh(Dual<V> x) {
    const V y = Math::tanh(x.value);
    return {y, (V{} + kOne - y * y) * x.tangent};
  }
};

// What moves, and the gradients that arrive at h and at the carried states; with a projection also that of h moves.
template <class V, CellSizes kSizes>
struct Moving {
  Sums<V, kSizes> sums;
  V h_before, carried_before[at_least_one(kSizes.carried)];
  V d_h, d_h_tangent, d_carried[at_least_one(kSizes.carried)];
};

// Tangents of what the step makes, and its gradients with their tangents.
template <class V, CellSizes kSizes>
struct SecondOrder {
  After<V, kSizes> after;
  CellGradients<Dual<V>, kSizes> gradients;
};

template <class Math, class Cell, class V>
constexpr SecondOrder<V, Cell::kSizes> second_order(const Cell& cell, const Known<V, Cell::kSizes>& known,
                                                    const Moving<V, Cell::kSizes>& moving) {
  constexpr CellSizes kSizes = Cell::kSizes;
  const auto after = cell.template tangents<Math>(known, moving.sums, moving.h_before, moving.carried_before);
  Known<Dual<V>, kSizes> k{};
  for (int i = 0; i < kSizes.saved; ++i) k.saved[i] = {known.saved[i], after.saved[i]};
  k.h_before = {known.h_before, moving.h_before};
  k.h = {known.h, after.h};
  Dual<V> d_carried[at_least_one(kSizes.carried)]{};
  for (int i = 0; i < kSizes.carried; ++i) {
    k.carried_before[i] = {known.carried_before[i], moving.carried_before[i]};
    k.carried[i] = {known.carried[i], after.carried[i]};
    d_carried[i].value = moving.d_carried[i];
  }
  const Dual<V> d_h{moving.d_h, moving.d_h_tangent};
  return {after, cell.backward(cell.template slopes<DualMath<Math, V>>(k), d_h, d_carried)};
}

}  // namespace fusedlstm
