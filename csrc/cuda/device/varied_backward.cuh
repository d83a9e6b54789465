// Backward, one batch row of a recurrence with variants.
#pragma once
#include "varied_row.cuh"

namespace fusedlstm::cuda {

template <class acc_t, class Cell>
class VariedBackward : VariedRow<acc_t, Cell> {
  using Base = VariedRow<acc_t, Cell>;
  using Base::kSizes, Base::clock, Base::cell, Base::H;
  using typename Base::Math;

 public:
  __device__ __forceinline__ VariedBackward(const VariedBackwardArgs& args, int b) : Base(args, b), a(args) {}

  __device__ __forceinline__ void start() {
    Base::for_each_unit([&](int u) {
      for (int k = 0; k < kSizes.states; ++k) d_state(k, u) = a.d_last[k] ? Base::own(a.d_last[k], H, u) : acc_t(0);
    });
  }

  // The gradients of the states that the step of time t began with become those of what the one before it left.
  __device__ __forceinline__ void leave(int t) {
    const bool runs = clock.runs(t), is_new = is_reset(a.rows, clock, t);
    Base::for_each_unit([&](int u) {
      if (runs) d_state(0, u) += Base::own(a.product, H, u) * (a.mask.data ? Base::factor(a.mask, t, u) : acc_t(1));
      for (int k = 0; k < kSizes.states && is_new; ++k) {
        if (a.d_reset_state[k]) Base::own(a.d_reset_state[k], H, u) += d_state(k, u);
        d_state(k, u) = 0;
      }
    });
  }

  __device__ __forceinline__ void step(int t) {
    if (!clock.runs(t)) return;
    Means of_c{};
    Totals totals;
    // Twice where c is normalised: the gradient of a norm needs that of all units.
#pragma unroll 1
    for (int pass = Base::norms_c() ? 0 : 1; pass < 2; ++pass) {
      const bool begins = pass == 1;
      totals = {};
      Base::for_each_unit([&](int u) {
        const Unit unit = end(t, u);
        if (begins)
          begin(t, u, unit, of_c, totals);
        else
          totals.sums.add(unit.ended.seen * Base::parameter(a.gain_c, u), unit.normed_c);
      });
      if (!begins) of_c = means(totals.sums, H, Base::of_step(a.scales, t, kVariedScales, kScaleC));
    }
    if (a.gain) leave_norm(a.d_from_hidden ? a.d_from_hidden : a.d_from_input, a.normed, totals.sums, t, kScale);
    if (a.gain_ih) leave_norm(a.d_from_input, a.normed_ih, totals.input, t, kScaleIh);
  }

 private:
  using Means = NormMeans<acc_t>;
  const VariedBackwardArgs& a;

  // What the way back through a norm needs of a row.
  struct Total {
    acc_t d = 0, d_times_normed = 0;
    __device__ __forceinline__ void add(acc_t of, acc_t normed) {
      d += of;
      d_times_normed += of * normed;
    }
  };
  __device__ __forceinline__ Means means(const Total& own, int n, acc_t scale) {
    const acc_t share = 1 / static_cast<acc_t>(n);
    const acc_t d = Base::sums.of(own.d), d_times_normed = Base::sums.of(own.d_times_normed);
    return {d * share, d_times_normed * share, scale};
  }

  // Of the norms of W_hh h, or of both sums, and of W_ih x.
  struct Totals {
    Total sums, input;
  };

  // Turns the gradients of a row's normalised values into those of what its norm had.
  __device__ __forceinline__ void leave_norm(void* d_rows, const void* normed, const Total& total, int t,
                                             VariedScale scale) {
    const Means of_row = means(total, kSizes.gates * H, Base::of_step(a.scales, t, kVariedScales, scale));
    Base::for_each_unit([&](int u) {
      for (int q = 0; q < kSizes.gates; ++q) {
        acc_t& d = of_gate(d_rows, t, q, u);
        d = of_row.template back<Math>(d, of_gate(normed, t, q, u));
      }
    });
  }

  __device__ __forceinline__ acc_t& d_state(int k, int u) const { return Base::own(a.d_initial[k], H, u); }
  __device__ __forceinline__ acc_t& of_gate(const void* rows, int t, int q, int u) const {
    return Base::of_step(rows, t, kSizes.gates * H, q * H + u);
  }
  // Adds to the gradient of element i of a parameter of n elements.
  __device__ __forceinline__ void add(void* sums, int n, int i, acc_t d) const {
    if (sums) Base::own(sums, n, i) += d;
  }
  // Of the gradient of a state that a step left, the part that goes to the state before it by zoneout.
  __device__ __forceinline__ acc_t part_kept(int k, int t, int u, acc_t d) const {
    return a.zoneout[k].data ? Base::factor(a.zoneout[k], t, u) * d : acc_t(0);
  }

  // A unit's step from its end to the norm of its cell state.
  struct Unit {
    acc_t saved[Cell::kSaved], c_before[1], c, normed_c;
    acc_t d_h, d_h_kept;  // of h as the cell made it, and of the one before it by zoneout
    Ended<acc_t> ended;
  };
  __device__ __forceinline__ Unit end(int t, int u) const {
    Unit unit{};
    for (int k = 0; k < Cell::kSaved; ++k) unit.saved[k] = Base::of_step(a.saved, t, Cell::kSaved * H, k * H + u);
    if constexpr (kSizes.carried > 0) {
      unit.c_before[0] = Base::of_step(a.before[1], t, H, u);
      unit.c = cell.template carried<Math>(unit.saved, unit.c_before);
    }
    acc_t seen = unit.c;
    if (Base::norms_c()) {
      const RowNorm<acc_t> norm{Base::of_step(a.scales, t, kVariedScales, kMeanC),
                                Base::of_step(a.scales, t, kVariedScales, kScaleC)};
      unit.normed_c = norm.of(unit.c);
      seen = Base::seen(unit.normed_c, u);
    }
    const acc_t d_h = d_state(0, u) + (a.d_output ? Base::of_step(a.d_output, t, H, u) : acc_t(0));
    unit.d_h_kept = part_kept(0, t, u, d_h);
    unit.d_h = d_h - unit.d_h_kept;
    unit.ended = cell.template end_backward<Math>(unit.saved, seen, unit.d_h);
    return unit;
  }

  // From there to the gradients of its sums, which `totals` have for their norms, and of the states before.
  __device__ __forceinline__ void begin(int t, int u, const Unit& unit, const Means& of_c, Totals& totals) const {
    const VariedSums& d = a.d_parameters;
    acc_t w[kPeepholes], d_c = unit.ended.seen, d_c_kept = 0;
    Base::peepholes(u, w);
    if (Base::norms_c()) {
      add(d.gain_c, H, u, unit.ended.seen * unit.normed_c);
      add(d.bias_c, H, u, unit.ended.seen);
      d_c = of_c.template back<Math>(unit.ended.seen * Base::parameter(a.gain_c, u), unit.normed_c);
    }
    if constexpr (kSizes.carried > 0) {
      d_c_kept = part_kept(1, t, u, d_state(1, u));
      d_c += d_state(1, u) - d_c_kept;
    }
    const acc_t h_before = kSizes.takes_h ? Base::of_step(a.before[0], t, H, u) : acc_t(0);
    const auto gradients =
        cell.template begin_backward<Math>(unit.saved, h_before, unit.c_before, unit.ended.o, unit.d_h, d_c, w);
    d_state(0, u) = unit.d_h_kept + (kSizes.takes_h ? gradients.h_before : acc_t(0));
    if constexpr (kSizes.carried > 0) {
      d_state(1, u) = d_c_kept + gradients.carried_before[0];
      const acc_t of_peepholes[kPeepholes] = {gradients.from_input[0] * unit.c_before[0],
                                              gradients.from_input[1] * unit.c_before[0], unit.ended.o * unit.c};
      for (int k = 0; k < kPeepholes; ++k) add(d.weight_ch, kPeepholes * H, k * H + u, of_peepholes[k]);
    }
    for (int q = 0; q < kSizes.gates; ++q) {
      acc_t from_input = gradients.from_input[q], from_hidden = gradients.from_hidden[q];
      add(d.bias, kSizes.gates * H, q * H + u, from_hidden);
      if (a.gain) from_hidden = enter_norm(a.gain, d.gain, a.normed, totals.sums, from_hidden, t, q, u);
      if (a.gain_ih) from_input = enter_norm(a.gain_ih, d.gain_ih, a.normed_ih, totals.input, from_input, t, q, u);
      of_gate(a.d_from_input, t, q, u) = Cell::kNormsBoth ? from_hidden : from_input;
      if (a.d_from_hidden) of_gate(a.d_from_hidden, t, q, u) = from_hidden;
    }
  }

  // The gradient of a gate's normalised value, by that of what its gain makes of it.
  __device__ __forceinline__ acc_t enter_norm(const void* gain, void* d_gain, const void* normed, Total& total, acc_t d,
                                              int t, int q, int u) const {
    const acc_t value = of_gate(normed, t, q, u);
    add(d_gain, kSizes.gates * H, q * H + u, d * value);
    d *= Base::parameter(gain, q * H + u);
    total.add(d, value);
    return d;
  }
};

}  // namespace fusedlstm::cuda
