// The LSTM cell: the gate equations and their derivatives, written once for every kernel.
//
// All functions are constexpr templates, so that CPU vector code (V = a vector of
// hidden units) and CUDA code (V = float or double, compiled with --expt-relaxed-constexpr) share them.
//
// Formula (torch.nn.LSTM; Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000):
//
//     i = sigmoid(pre_i)   f = sigmoid(pre_f)   g = tanh(pre_g)   o = sigmoid(pre_o)
//     c = f * c_prev + i * g
//     h = o * tanh(c)
//
// where pre_* are the four gate pre-activations W_ih x + b_ih + W_hh h_prev + b_hh of one hidden unit.
// `Math` supplies `sigmoid(V)`, `tanh(V)`, `rounded_product(V, V)` and the scalar `kOne` in the precision of the
// caller.
#pragma once

#include "cell.h"

namespace fusedlstm {

// Activated gates of one time step, and the states they lead to.
template <class V>
struct CellForward {
  V i, f, g, o, c, h;
};

// i, f, g, o: gate pre-activations; c_prev: cell state before the step.
template <class V, class Math>
constexpr CellForward<V> cell_forward(V i, V f, V g, V o, V c_prev) {
  CellForward<V> y{};
  y.i = Math::sigmoid(i);
  y.f = Math::sigmoid(f);
  y.g = Math::tanh(g);
  y.o = Math::sigmoid(o);
  // One of the products goes into a fused multiply-add: the one with the old state, whose roundings add up from step to
  // step where the forget gate is near 1. Left to the compilers, it would be either, differently from kernel to kernel.
  y.c = y.f * c_prev + Math::rounded_product(y.i, y.g);
  y.h = y.o * Math::tanh(y.c);
  return y;
}

// Derivatives of one step: of its outputs with respect to the gate pre-activations and c_prev, as far as they are known
// before the gradients of h and c.
template <class V>
struct CellSlopes {
  V c_i, c_f, c_g, c_c_prev;  // of c
  V h_o, h_c;                 // of h; c as h sees it
};

// i, f, g, o: activated gates; c, c_prev: cell state after and before the step.
template <class V, class Math>
constexpr CellSlopes<V> cell_slopes(V i, V f, V g, V o, V c, V c_prev) {
  const V one = V{} + Math::kOne;
  const V tanh_c = Math::tanh(c);
  CellSlopes<V> y{};
  y.c_i = g * i * (one - i);
  y.c_f = c_prev * f * (one - f);
  y.c_g = i * (one - g * g);
  y.c_c_prev = f;
  y.h_o = tanh_c * o * (one - o);
  y.h_c = o * (one - tanh_c * tanh_c);
  return y;
}

// Gradients of the four gate pre-activations, and of the cell state before the step.
template <class V>
struct CellBackward {
  V d_i, d_f, d_g, d_o, d_c_prev;
};

// d_h: gradient of h from everywhere; d_c: gradient of c from later steps and from outside (not through h).
template <class V>
constexpr CellBackward<V> cell_backward(const CellSlopes<V>& slopes, V d_h, V d_c) {
  const V d_cell = d_c + d_h * slopes.h_c;
  CellBackward<V> y{};
  y.d_i = d_cell * slopes.c_i;
  y.d_f = d_cell * slopes.c_f;
  y.d_g = d_cell * slopes.c_g;
  y.d_o = d_h * slopes.h_o;
  y.d_c_prev = d_cell * slopes.c_c_prev;
  return y;
}

// saved: i, f, g, o. carried: c.
struct Lstm {
  static constexpr CellSizes kSizes{.gates = 4,
                                    .joined = 4,
                                    .states = 2,
                                    .saved = 4,
                                    .carried = 1,
                                    .takes_h = false,
                                    .reads_h = false,
                                    .projects = true};

  template <class Math, class V>
  constexpr After<V, kSizes> forward(const Sums<V, kSizes>& sums, V, const V (&c)[1]) const {
    const auto& pre = sums.joined;
    const auto y = cell_forward<V, Math>(pre[0], pre[1], pre[2], pre[3], c[0]);
    return {y.h, {y.c}, {y.i, y.f, y.g, y.o}};
  }

  template <class Math, class V>
  constexpr CellGradients<V, kSizes> backward(const Known<V, kSizes>& k, V d_h, const V (&d_c)[1]) const {
    const auto slopes =
        cell_slopes<V, Math>(k.saved[0], k.saved[1], k.saved[2], k.saved[3], k.carried[0], k.carried_before[0]);
    const auto z = cell_backward<V>(slopes, d_h, d_c[0]);
    return {{z.d_i, z.d_f, z.d_g, z.d_o}, {z.d_i, z.d_f, z.d_g, z.d_o}, V{}, {z.d_c_prev}};
  }

  template <class Math, class V>
  constexpr V hidden(const V (&saved)[4], const V (&c)[1]) const {
    return saved[3] * Math::tanh(c[0]);
  }
};

}  // namespace fusedlstm
