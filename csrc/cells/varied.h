// Cells of a recurrence with variants: between what a step does before the norm of its cell state and after it.
//
// A varied cell is to the kernels of varied recurrences what cell.h says of cells, in two parts. Sizes are those of the
// plain cell, but for what is saved; sums may be normalised, and h masked, by the kernel around it.
//
//     LSTM with peepholes (Gers & Schmidhuber 2000) and norms (Ba et al. 2016), N of which is the identity without:
//     i = sigmoid(pre_i + w_i c_before)   f = sigmoid(pre_f + w_f c_before)   g = tanh(pre_g)
//     c = f c_before + i g                o = sigmoid(pre_o + w_o c)          h = o tanh(N(c))
//
//     GRU with layer norm (DreamerV3, Hafner et al. 2023), pre_* of the normalised sums of both products:
//     r = sigmoid(pre_r)   z = sigmoid(pre_z - 1)   n = tanh(r pre_n)         h = h_before + z (n - h_before)
//
// Any other is the plain cell.
#pragma once

#include "all.h"

namespace fusedlstm {

inline constexpr int kPeepholes = 3;  // of a unit: those of i, f and o

// What is kept of a row's norms: scales of W_hh h, or of the GRU's sums, of c and of W_ih x; and the mean of c.
enum VariedScale { kScale, kMeanC, kScaleC, kScaleIh, kVariedScales };

// A state after zoneout, which keeps the part z of the old one (Krueger et al. 2017).
template <class Math, class V>
constexpr V zoned_out(V z, V before, V after) {
  return z * before + (V{} + Math::kOne - z) * after;
}

// The way back through (x - mean) * scale of a row, by means over it: of d, the gradient of its normalised values, and
// of d times these.
template <class Acc>
struct NormMeans {
  Acc d, d_times_normed, scale;

  template <class Math, class V>
  constexpr V back(V d_of, V normed) const {
    return (d_of - d - normed * d_times_normed) * scale;
  }
};

// What a step comes to before its cell state is normalised. h: of cells that have none.
template <class V, CellSizes kSizes, int kSaved>
struct Begun {
  V saved[kSaved], carried[at_least_one(kSizes.carried)], h;
};

// Gradients of what comes after the norm: of the sum of o, and of the cell state as h sees it.
template <class V>
struct Ended {
  V o, seen;
};

struct VariedLstm {
  static constexpr CellSizes kSizes = Lstm::kSizes;
  static constexpr int kSaved = kSizes.saved;
  static constexpr bool kNormsBoth = false;  // whether one norm has the sum of both products

  template <class Math, class V>
  constexpr Begun<V, kSizes, kSaved> begin(const Sums<V, kSizes>& sums, V, const V (&c_before)[1],
                                           const V (&w)[kPeepholes]) const {
    const auto& pre = sums.joined;
    const V i = Math::sigmoid(pre[0] + w[0] * c_before[0]), f = Math::sigmoid(pre[1] + w[1] * c_before[0]);
    const V g = Math::tanh(pre[2]), c = f * c_before[0] + Math::rounded_product(i, g);
    return {{i, f, g, pre[3] + w[2] * c}, {c}, V{}};
  }
  // h; what is saved of o becomes the gate.
  template <class Math, class V>
  constexpr V end(V (&saved)[kSaved], V, V seen) const {
    saved[3] = Math::sigmoid(saved[3]);
    return saved[3] * Math::tanh(seen);
  }

  template <class Math, class V>
  constexpr V carried(const V (&saved)[kSaved], const V (&c_before)[1]) const {
    return saved[1] * c_before[0] + Math::rounded_product(saved[0], saved[2]);
  }
  template <class Math, class V>
  constexpr Ended<V> end_backward(const V (&saved)[kSaved], V seen, V d_h) const {
    const V one = V{} + Math::kOne, o = saved[3], tanh_c = Math::tanh(seen);
    return {d_h * tanh_c * o * (one - o), d_h * o * (one - tanh_c * tanh_c)};
  }
  // d_c: without what comes by the peephole of o.
  template <class Math, class V>
  constexpr CellGradients<V, kSizes> begin_backward(const V (&saved)[kSaved], V, const V (&c_before)[1], V d_o, V,
                                                    V d_c, const V (&w)[kPeepholes]) const {
    const V one = V{} + Math::kOne, i = saved[0], f = saved[1], g = saved[2];
    d_c += d_o * w[2];
    const V d_i = d_c * g * i * (one - i), d_f = d_c * c_before[0] * f * (one - f), d_g = d_c * i * (one - g * g);
    return {{d_i, d_f, d_g, d_o}, {d_i, d_f, d_g, d_o}, V{}, {d_c * f + d_i * w[0] + d_f * w[1]}};
  }
};

// Of cells without a cell state: h is there at once, and nothing comes after a norm.
template <int kSaved>
struct EndsAtOnce {
  template <class Math, class V>
  constexpr V end(V (&)[kSaved], V h, V) const {
    return h;
  }
  template <class Math, class V>
  constexpr Ended<V> end_backward(const V (&)[kSaved], V, V) const {
    return {V{}, V{}};
  }
};

// A cell with variants of its states alone, as it is.
template <class Cell>
struct Unvaried : EndsAtOnce<Cell::kSizes.saved + Cell::kSizes.reads_h> {
  static constexpr CellSizes kSizes = Cell::kSizes;
  static constexpr int kSaved = kSizes.saved + kSizes.reads_h;
  static constexpr bool kNormsBoth = false;
  static_assert(kSizes.carried == 0 && (kSizes.saved == 0 || !kSizes.reads_h));

  Cell cell;

  template <class Math, class V>
  constexpr Begun<V, kSizes, kSaved> begin(const Sums<V, kSizes>& sums, V h_before, const V (&none)[1],
                                           const V (&)[kPeepholes]) const {
    const auto after = cell.template forward<Math>(sums, h_before, none);
    Begun<V, kSizes, kSaved> begun{};
    for (int k = 0; k < kSizes.saved; ++k) begun.saved[k] = after.saved[k];
    if constexpr (kSizes.reads_h) begun.saved[0] = after.h;
    begun.h = after.h;
    return begun;
  }
  template <class Math, class V>
  constexpr CellGradients<V, kSizes> begin_backward(const V (&saved)[kSaved], V h_before, const V (&none)[1], V, V d_h,
                                                    V, const V (&)[kPeepholes]) const {
    Known<V, kSizes> known{};
    for (int k = 0; k < kSizes.saved; ++k) known.saved[k] = saved[k];
    if constexpr (kSizes.reads_h) known.h = saved[0];
    known.h_before = h_before;
    return cell.backward(cell.template slopes<Math>(known), d_h, none);
  }
};

// saved: r, z, n, and the sum that r multiplies.
struct NormedGru : EndsAtOnce<Gru::kSizes.saved> {
  // The norm has whole sums.
  static constexpr CellSizes kSizes = [] {
    CellSizes sizes = Gru::kSizes;
    sizes.joined = sizes.gates;
    return sizes;
  }();
  static constexpr int kSaved = kSizes.saved;
  static constexpr bool kNormsBoth = true;

  template <class Math, class V>
  constexpr Begun<V, kSizes, kSaved> begin(const Sums<V, kSizes>& sums, V h_before, const V (&)[1],
                                           const V (&)[kPeepholes]) const {
    const V r = Math::sigmoid(sums.joined[0]), z = Math::sigmoid(sums.joined[1] - Math::kOne);
    const V n = Math::tanh(r * sums.joined[2]);
    return {{r, z, n, sums.joined[2]}, {}, h_before + z * (n - h_before)};
  }
  template <class Math, class V>
  constexpr CellGradients<V, kSizes> begin_backward(const V (&saved)[kSaved], V h_before, const V (&)[1], V, V d_h, V,
                                                    const V (&)[kPeepholes]) const {
    const V one = V{} + Math::kOne, r = saved[0], z = saved[1], n = saved[2];
    const V d_product = d_h * z * (one - n * n);  // of r times its sum
    const V d_r = d_product * saved[3] * r * (one - r), d_z = d_h * (n - h_before) * z * (one - z);
    return {{d_r, d_z, d_product * r}, {d_r, d_z, d_product * r}, d_h * (one - z), {}};
  }
};

// A varied cell of its type, with the values that an operator has it with.
template <class Cell>
constexpr Cell make_varied_cell(bool is_relu) {
  if constexpr (Cell::kSizes == Rnn::kSizes)
    return {{}, {is_relu}};
  else
    return {};
}

// Which varied cell: the kernels are compiled for each.
enum class VariedKind : int { kLstm, kGru, kRnn, kNormedGru };
inline constexpr int kVariedKinds = 4;

constexpr VariedKind varied_kind(CellKind kind, bool has_norm) {
  return kind == CellKind::kLstm  ? VariedKind::kLstm
         : kind == CellKind::kRnn ? VariedKind::kRnn
         : has_norm               ? VariedKind::kNormedGru
                                  : VariedKind::kGru;
}

constexpr int saved_of(VariedKind kind) {
  return kind == VariedKind::kLstm  ? VariedLstm::kSaved
         : kind == VariedKind::kGru ? Unvaried<Gru>::kSaved
         : kind == VariedKind::kRnn ? Unvaried<Rnn>::kSaved
                                    : NormedGru::kSaved;
}

}  // namespace fusedlstm
