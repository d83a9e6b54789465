// What a cell is to the kernels: one type of csrc/cells with these members, written for one hidden unit or for a vector
// of them.
//
//     static constexpr CellSizes kSizes;
//     template <class Math, class V>
//     constexpr After<V, kSizes> forward(const Sums<V, kSizes>&, V h, const V (&carried)[...]) const;
//     template <class V>
//     struct Slopes {...};   members of type V, and each(f), which calls f with a reference to every one of them
//     template <class Math, class V>
//     constexpr Slopes<V> slopes(const Known<V, kSizes>&) const;
//     template <class V>
//     constexpr CellGradients<V, kSizes> backward(const Slopes<V>&, V d_h, const V (&d_carried)[...]) const;
//     template <class Math, class V>
//     constexpr After<V, kSizes> tangents(const Known<V, kSizes>&, const Sums<V, kSizes>&, V h, const V
//     (&carried)[...])
//         const;   how what `forward` makes moves along tangents of what it takes
//     template <class Math, class V>
//     constexpr V hidden(const V (&saved)[...], const V (&carried)[...]) const;   where kSizes.projects
//
// `Math` supplies `sigmoid(V)`, `tanh(V)`, `accurate_tanh(V)`, `rounded_product(V, V)` and the scalar `kOne` in the
// precision of the caller; sigmoid and tanh may return what a product with it or a conversion to V divides
// (cpu/kernel/quotients.h). Everything is constexpr, so that CPU vector code (V = a vector of hidden units) and CUDA
// code (V = float or double, compiled with --expt-relaxed-constexpr) share it. A cell is a value: what it is told
// beside its type, as the RNN's activation, are its members.
//
// Slopes are what a step's derivatives come to before the gradients of its results are there: those of the recurrence
// arrive last, and backward of a step then is a few products. d_h: the gradient of h from everywhere; d_carried: those
// of the states beside it, from later steps and from outside, not through h.
#pragma once

#include "sizes.h"

namespace fusedlstm {

// The derivative of relu, by its result: d where it is positive. NaN passes.
template <class V>
constexpr V zero_unless_positive(V h, V d) {
  return h <= V{} ? V{} : d;
}

// Sizes of arrays: there are none of no elements.
constexpr int at_least_one(int n) {
  return n > 0 ? n : 1;
}

// What enters the gates of a step: the whole sum of a joined gate, W_ih x + b_ih + W_hh h + b_hh, and the two parts of
// one that is apart.
template <class V, CellSizes kSizes>
struct Sums {
  V joined[at_least_one(kSizes.joined)];
  V from_input[at_least_one(kSizes.apart())], from_hidden[at_least_one(kSizes.apart())];
};

// What a step makes of its sums: h before a projection.
template <class V, CellSizes kSizes>
struct After {
  V h, carried[at_least_one(kSizes.carried)], saved[at_least_one(kSizes.saved)];
};

// What backward knows of a step. h_before, h: only of cells that say in their sizes that they need them.
template <class V, CellSizes kSizes>
struct Known {
  V saved[at_least_one(kSizes.saved)], h_before, h;
  V carried_before[at_least_one(kSizes.carried)], carried[at_least_one(kSizes.carried)];
};

// Gradients of what a step took. from_hidden equals from_input where the cell is joined; h_before: of h itself, not
// through its products, where the cell uses it.
template <class V, CellSizes kSizes>
struct CellGradients {
  V from_input[kSizes.gates], from_hidden[kSizes.gates], h_before, carried_before[at_least_one(kSizes.carried)];
};

}  // namespace fusedlstm
