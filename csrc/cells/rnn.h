// The simple recurrent cell.
//
// Formula (torch.nn.RNN; Elman 1990): h = tanh(W_ih x + b_ih + W_hh h_before + b_hh), or relu in place of tanh.
#pragma once

#include "cell.h"

namespace fusedlstm {

struct Rnn {
  static constexpr CellSizes kSizes{.gates = 1,
                                    .joined = 1,
                                    .states = 1,
                                    .saved = 0,
                                    .carried = 0,
                                    .takes_h = false,
                                    .reads_h = true,
                                    .projects = false};

  bool is_relu = false;

  // NaN passes, as in PyTorch.
  template <class Math, class V>
  constexpr After<V, kSizes> forward(const Sums<V, kSizes>& sums, V, const V (&)[1]) const {
    const V sum = sums.joined[0];
    return {is_relu ? (sum < V{} ? V{} : sum) : Math::accurate_tanh(sum), {}, {}};
  }

  template <class V>
  struct Slopes {
    V slope_or_h;  // tanh: the slope; relu: h, whose sign tells whether a gradient passes, of whatever value

    template <class F>
    constexpr void each(F f) {
      f(slope_or_h);
    }
  };

  template <class Math, class V>
  constexpr Slopes<V> slopes(const Known<V, kSizes>& k) const {
    return {is_relu ? k.h : V{} + Math::kOne - k.h * k.h};
  }

  template <class V>
  constexpr CellGradients<V, kSizes> backward(const Slopes<V>& slopes, V d_h, const V (&)[1]) const {
    const V x = slopes.slope_or_h, d = is_relu ? zero_unless_positive(x, d_h) : d_h * x;
    return {{d}, {d}, V{}, {}};
  }

  template <class Math, class V>
  constexpr After<V, kSizes> tangents(const Known<V, kSizes>& k, const Sums<V, kSizes>& sums, V, const V (&)[1]) const {
    const V sum = sums.joined[0];
    return {is_relu ? zero_unless_positive(k.h, sum) : sum * (V{} + Math::kOne - k.h * k.h), {}, {}};
  }
};

}  // namespace fusedlstm
