// The LSTM cell.
//
// Formula (torch.nn.LSTM; Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000):
//
//     i = sigmoid(pre_i)   f = sigmoid(pre_f)   g = tanh(pre_g)   o = sigmoid(pre_o)
//     c = f * c_prev + i * g
//     h = o * tanh(c)
//
// where pre_* are the four gate pre-activations W_ih x + b_ih + W_hh h_prev + b_hh of one hidden unit.
#pragma once

#include "cell.h"

namespace fusedlstm {

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
  constexpr After<V, kSizes> forward(const Sums<V, kSizes>& sums, V, const V (&c_before)[1]) const {
    const auto& pre = sums.joined;
    const auto i = Math::sigmoid(pre[0]), f = Math::sigmoid(pre[1]);
    const auto g = Math::tanh(pre[2]);
    const auto o = Math::sigmoid(pre[3]);
    // One of the products goes into a fused multiply-add: the one with the old state, whose roundings add up from step
    // to step where the forget gate is near 1. Left to the compilers, it would be either, differently from kernel to
    // kernel.
    const V c = f * c_before[0] + Math::rounded_product(i, g);
    return {o * Math::tanh(c), {c}, {i, f, g, o}};
  }

  template <class V>
  struct Slopes {
    V c_i, c_f, c_g, c_c_before;  // of c
    V h_o, h_c;                   // of h; c as h sees it

    template <class F>
    constexpr void each(F f) {
      f(c_i), f(c_f), f(c_g), f(c_c_before), f(h_o), f(h_c);
    }
  };

  template <class Math, class V>
  constexpr Slopes<V> slopes(const Known<V, kSizes>& k) const {
    const V one = V{} + Math::kOne;
    const V i = k.saved[0], f = k.saved[1], g = k.saved[2], o = k.saved[3];
    const V tanh_c = Math::tanh(k.carried[0]);
    return {g * i * (one - i),      k.carried_before[0] * f * (one - f), i * (one - g * g), f,
            tanh_c * o * (one - o), o * (one - tanh_c * tanh_c)};
  }

  template <class V>
  constexpr CellGradients<V, kSizes> backward(const Slopes<V>& slopes, V d_h, const V (&d_carried)[1]) const {
    const V d_c = d_carried[0] + d_h * slopes.h_c;
    const V d_i = d_c * slopes.c_i, d_f = d_c * slopes.c_f, d_g = d_c * slopes.c_g, d_o = d_h * slopes.h_o;
    return {{d_i, d_f, d_g, d_o}, {d_i, d_f, d_g, d_o}, V{}, {d_c * slopes.c_c_before}};
  }

  template <class Math, class V>
  constexpr V hidden(const V (&saved)[4], const V (&c)[1]) const {
    return saved[3] * Math::tanh(c[0]);
  }

  template <class Math, class V>
  constexpr After<V, kSizes> tangents(const Known<V, kSizes>& k, const Sums<V, kSizes>& sums, V,
                                      const V (&c_before)[1]) const {
    const V one = V{} + Math::kOne, tanh_c = Math::tanh(k.carried[0]);
    const V i = k.saved[0], f = k.saved[1], g = k.saved[2], o = k.saved[3];
    const V of_i = i * (one - i) * sums.joined[0], of_f = f * (one - f) * sums.joined[1];
    const V of_g = (one - g * g) * sums.joined[2], of_o = o * (one - o) * sums.joined[3];
    const V of_c = of_f * k.carried_before[0] + f * c_before[0] + of_i * g + i * of_g;
    return {of_o * tanh_c + o * (one - tanh_c * tanh_c) * of_c, {of_c}, {of_i, of_f, of_g, of_o}};
  }
};

}  // namespace fusedlstm
