// The LSTM cell: the gate equations and their derivatives, written once for every kernel.
//
// Level 0: includes nothing. All functions are constexpr templates, so that CPU vector code (V = a vector of
// hidden units) and CUDA code (V = float or double, compiled with --expt-relaxed-constexpr) share them.
//
// Formula (torch.nn.LSTM; Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000):
//
//     i = sigmoid(pre_i)   f = sigmoid(pre_f)   g = tanh(pre_g)   o = sigmoid(pre_o)
//     c = f * c_prev + i * g
//     h = o * tanh(c)
//
// where pre_* are the four gate pre-activations W_ih x + b_ih + W_hh h_prev + b_hh of one hidden unit.
// `Math` supplies `sigmoid(V)`, `tanh(V)` and the scalar `kOne` in the precision of the caller.
#pragma once

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
  y.c = y.f * c_prev + y.i * y.g;
  y.h = y.o * Math::tanh(y.c);
  return y;
}

// Gradients of the four gate pre-activations, and of the cell state before the step.
template <class V>
struct CellBackward {
  V d_i, d_f, d_g, d_o, d_c_prev;
};

// i, f, g, o: activated gates; c, c_prev: cell state after and before the step;
// d_h: gradient of h from everywhere; d_c: gradient of c from later steps and from outside (not through h).
template <class V, class Math>
constexpr CellBackward<V> cell_backward(V i, V f, V g, V o, V c, V c_prev, V d_h, V d_c) {
  const V one = V{} + Math::kOne;
  const V tanh_c = Math::tanh(c);
  const V d_cell = d_c + d_h * o * (one - tanh_c * tanh_c);
  CellBackward<V> y{};
  y.d_i = d_cell * g * i * (one - i);
  y.d_f = d_cell * c_prev * f * (one - f);
  y.d_g = d_cell * i * (one - g * g);
  y.d_o = d_h * tanh_c * o * (one - o);
  y.d_c_prev = d_cell * f;
  return y;
}

}  // namespace fusedlstm
