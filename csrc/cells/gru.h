// The GRU cell.
//
// Formula (torch.nn.GRU; Cho et al. 2014, with the reset gate after the product as in cuDNN):
//
//     r = sigmoid(x_r + h_r)   z = sigmoid(x_z + h_z)   n = tanh(x_n + r * h_n)
//     h = n + z * (h_before - n)
//
// where x_* = W_ih x + b_ih and h_* = W_hh h_before + b_hh.
#pragma once

#include "cell.h"

namespace fusedlstm {

// saved: r, z, n, h_n.
struct Gru {
  static constexpr CellSizes kSizes{.gates = 3,
                                    .joined = 2,
                                    .states = 1,
                                    .saved = 4,
                                    .carried = 0,
                                    .takes_h = true,
                                    .reads_h = false,
                                    .projects = false};

  template <class Math, class V>
  constexpr After<V, kSizes> forward(const Sums<V, kSizes>& sums, V h_before, const V (&)[1]) const {
    const auto r = Math::sigmoid(sums.joined[0]), z = Math::sigmoid(sums.joined[1]);
    const V h_n = sums.from_hidden[0], n = Math::tanh(sums.from_input[0] + r * h_n);
    return {n + z * (h_before - n), {}, {r, z, n, h_n}};
  }

  template <class V>
  struct Slopes {
    V r, z, n;  // of h, with respect to the sums
    V h_n;      // and to the part of n's that r multiplies
    V h_before;

    template <class F>
    constexpr void each(F f) {
      f(r), f(z), f(n), f(h_n), f(h_before);
    }
  };

  template <class Math, class V>
  constexpr Slopes<V> slopes(const Known<V, kSizes>& k) const {
    const V one = V{} + Math::kOne;
    const V r = k.saved[0], z = k.saved[1], n = k.saved[2], h_n = k.saved[3];
    const V of_n = (one - z) * (one - n * n);
    return {of_n * h_n * r * (one - r), (k.h_before - n) * z * (one - z), of_n, of_n * r, z};
  }

  template <class V>
  constexpr CellGradients<V, kSizes> backward(const Slopes<V>& slopes, V d_h, const V (&)[1]) const {
    const V d_r = d_h * slopes.r, d_z = d_h * slopes.z;
    return {{d_r, d_z, d_h * slopes.n}, {d_r, d_z, d_h * slopes.h_n}, d_h * slopes.h_before, {}};
  }

  template <class Math, class V>
  constexpr After<V, kSizes> tangents(const Known<V, kSizes>& k, const Sums<V, kSizes>& sums, V h_before,
                                      const V (&)[1]) const {
    const V one = V{} + Math::kOne;
    const V r = k.saved[0], z = k.saved[1], n = k.saved[2], h_n = k.saved[3];
    const V of_r = r * (one - r) * sums.joined[0], of_z = z * (one - z) * sums.joined[1];
    const V of_n = (one - n * n) * (sums.from_input[0] + of_r * h_n + r * sums.from_hidden[0]);
    return {of_n + of_z * (k.h_before - n) + z * (h_before - of_n), {}, {of_r, of_z, of_n, sums.from_hidden[0]}};
  }
};

}  // namespace fusedlstm
