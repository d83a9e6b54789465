// Backward, one batch row of a recurrence with variants.
#pragma once
#include "varied_row.cuh"

namespace fusedlstm::cuda {

// Where the gradients of a row are between its steps and in a step: in global memory, or in the block's own.
template <class acc_t>
struct RowGradients {
  acc_t* d_states[kMaxStates];  // [H]
  // [gate][unit] of the step, gates `pitch` apart: what the product takes, and the other part of the gates' sums, which
  // is the same memory where it is the same.
  acc_t *d_sums, *d_from_input;
  int pitch;
};

// kHoldsSums: a thread has one unit and one gate at most, and the sums of their parameters' gradients in registers
// until `finish`; else they are in memory.
template <class acc_t, class Cell, bool kHoldsSums>
class VariedBackward : VariedRow<acc_t, Cell> {
  using Base = VariedRow<acc_t, Cell>;
  using Base::kSizes, Base::clock, Base::cell, Base::H;
  using typename Base::Math;

 public:
  __device__ __forceinline__ VariedBackward(const VariedBackwardArgs& args, int b, const RowGradients<acc_t>& memory)
      : Base(args, b), a(args), memory(memory) {}

  __device__ __forceinline__ void start() {
    Base::for_each_unit([&](int u) {
      for (int k = 0; k < kSizes.states; ++k) d_state(k, u) = a.d_last[k] ? Base::own(a.d_last[k], H, u) : acc_t(0);
    });
  }

  // The gradients of the states that the step of time t began with become those of what the one before it left.
  // product_of(u): what the gradients of the step's sums come to by weight_hh.
  template <class ProductOf>
  __device__ __forceinline__ void leave(int t, ProductOf product_of) {
    const bool runs = clock.runs(t), is_new = is_reset(a.rows, clock, t);
    Base::for_each_unit([&](int u) {
      if (runs) d_state(0, u) += product_of(u) * (a.mask.data ? Base::factor(a.mask, t, u) : acc_t(1));
      for (int k = 0; k < kSizes.states && is_new; ++k) {
        if (a.d_reset_state[k]) Base::own(a.d_reset_state[k], H, u) += d_state(k, u);
        d_state(k, u) = 0;
      }
    });
  }

  __device__ __forceinline__ void step(int t) {
    if (!clock.runs(t)) return;
    Base::sums = {};
    Means of_c{};
    // Twice where c is normalised: the gradient of a norm needs that of all units.
#pragma unroll 1
    for (int pass = Base::norms_c() ? 0 : 1; pass < 2; ++pass) {
      const bool begins = pass == 1;
      Total of_row[1];
      Base::for_each_unit([&](int u) {
        const Unit unit = end(t, u);
        if (begins)
          begin(t, u, unit, of_c);
        else
          of_row[0].add(unit.ended.seen * Base::parameter(a.gain_c, u), unit.normed_c);
      });
      if (!begins) {
        add_up(of_row);
        of_c = means(of_row[0], H, t, kScaleC);
      }
    }
    block_sync();  // a gate may be another thread's than its unit
    Total totals[2];
    Base::for_each_gate([&](int i) {
      acc_t &d_sum = memory.d_sums[place_of(i)], &d_input = memory.d_from_input[place_of(i)];
      add(kBias, a.d_parameters.bias, kGates * H, i, d_sum);
      if (a.gain) enter_norm(d_sum, a.gain, kGain, a.d_parameters.gain, a.normed, totals[0], t, i);
      if (a.gain_ih) enter_norm(d_input, a.gain_ih, kGainIh, a.d_parameters.gain_ih, a.normed_ih, totals[1], t, i);
    });
    if (!a.gain && !a.gain_ih) return;
    add_up(totals);
    if (a.gain) leave_norm(memory.d_sums, a.normed, totals[0], t, kScale);
    if (a.gain_ih) leave_norm(memory.d_from_input, a.normed_ih, totals[1], t, kScaleIh);
  }

  // Of a step with memory of its own the gradients of the gates' sums go to where the products over all steps have
  // them.
  __device__ __forceinline__ void keep(int t) const {
    if (!clock.runs(t)) return;
    Base::for_each_gate([&](int i) {
      Base::of_step(a.d_from_input, t, kGates * H, i) = memory.d_from_input[place_of(i)];
      if (a.d_from_hidden) Base::of_step(a.d_from_hidden, t, kGates * H, i) = memory.d_sums[place_of(i)];
    });
  }

  // What is not in its place yet: the gradients of the initial states, and of parameters.
  __device__ __forceinline__ void finish() const {
    static_assert(kHoldsSums);
    const VariedSums& d = a.d_parameters;
    const auto put = [&](Place place, void* sums, int n, int i, int offset = 0) {
      if (sums) Base::own(sums, n, i) = held[place + offset];
    };
    Base::for_each_gate([&](int i) {
      put(kBias, d.bias, kGates * H, i);
      put(kGain, d.gain, kGates * H, i);
      put(kGainIh, d.gain_ih, kGates * H, i);
    });
    Base::for_each_unit([&](int u) {
      for (int k = 0; k < kSizes.states; ++k) Base::own(a.d_initial[k], H, u) = d_state(k, u);
      for (int k = 0; k < kPeepholes; ++k) put(kWeightCh, d.weight_ch, kPeepholes * H, k * H + u, k);
      put(kGainC, d.gain_c, H, u);
      put(kBiasC, d.bias_c, H, u);
    });
  }

 private:
  using Means = NormMeans<acc_t>;
  static constexpr int kGates = kSizes.gates;
  // Of a thread's sums in registers: those of its gate, and of its unit.
  enum Place { kBias, kGain, kGainIh, kWeightCh, kGainC = kWeightCh + kPeepholes, kBiasC, kPlaces };

  const VariedBackwardArgs& a;
  const RowGradients<acc_t> memory;
  acc_t held[kHoldsSums ? kPlaces : 1] = {};

  // Where value i of a row's gates is in the memory of a step.
  __device__ __forceinline__ int place_of(int i) const { return i + i / H * (memory.pitch - H); }

  // What the way back through a norm needs of a row.
  struct Total {
    acc_t d = 0, d_times_normed = 0;
    __device__ __forceinline__ void add(acc_t of, acc_t normed) {
      d += of;
      d_times_normed += of * normed;
    }
  };
  // Makes those of the block of those of its threads.
  template <int kCount>
  __device__ __forceinline__ void add_up(Total (&totals)[kCount]) {
    acc_t values[2 * kCount];
    for (int k = 0; k < kCount; ++k) {
      values[2 * k] = totals[k].d;
      values[2 * k + 1] = totals[k].d_times_normed;
    }
    Base::sums.of(values);
    for (int k = 0; k < kCount; ++k) totals[k] = {values[2 * k], values[2 * k + 1]};
  }
  // Of a norm of n values.
  __device__ __forceinline__ Means means(const Total& all, int n, int t, VariedScale scale) const {
    const acc_t share = 1 / static_cast<acc_t>(n);
    return {all.d * share, all.d_times_normed * share, Base::of_step(a.scales, t, kVariedScales, scale)};
  }

  // The gradient of a gate's normalised value, by that of what its gain makes of it; `total` is its norm's.
  __device__ __forceinline__ void enter_norm(acc_t& d, const void* gain, Place place, void* d_gain, const void* normed,
                                             Total& total, int t, int i) {
    const acc_t value = Base::of_step(normed, t, kGates * H, i);
    add(place, d_gain, kGates * H, i, d * value);
    d *= Base::parameter(gain, i);
    total.add(d, value);
  }

  // Turns the gradients of a row's normalised values into those of what its norm had.
  __device__ __forceinline__ void leave_norm(acc_t* d_row, const void* normed, const Total& total, int t,
                                             VariedScale scale) const {
    const Means of_row = means(total, kGates * H, t, scale);
    Base::for_each_gate([&](int i) {
      acc_t& d = d_row[place_of(i)];
      d = of_row.template back<Math>(d, Base::of_step(normed, t, kGates * H, i));
    });
  }

  __device__ __forceinline__ acc_t& d_state(int k, int u) const { return memory.d_states[k][u]; }
  // Adds to the gradient of element i of a parameter of n elements.
  __device__ __forceinline__ void add(int place, void* sums, int n, int i, acc_t d) {
    if constexpr (kHoldsSums) {
      held[place] += d;
    } else {
      if (sums) Base::own(sums, n, i) += d;
    }
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

  // From there to the gradients of its gates' sums, and of the states before.
  __device__ __forceinline__ void begin(int t, int u, const Unit& unit, const Means& of_c) {
    const VariedSums& d = a.d_parameters;
    acc_t w[kPeepholes], d_c = unit.ended.seen, d_c_kept = 0;
    Base::peepholes(u, w);
    if (Base::norms_c()) {
      add(kGainC, d.gain_c, H, u, unit.ended.seen * unit.normed_c);
      add(kBiasC, d.bias_c, H, u, unit.ended.seen);
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
      for (int k = 0; k < kPeepholes; ++k) add(kWeightCh + k, d.weight_ch, kPeepholes * H, k * H + u, of_peepholes[k]);
    }
    for (int q = 0; q < kGates; ++q) {
      const int at = q * memory.pitch + u;
      memory.d_from_input[at] = Cell::kNormsBoth ? gradients.from_hidden[q] : gradients.from_input[q];
      if (a.d_from_hidden) memory.d_sums[at] = gradients.from_hidden[q];
    }
  }
};

}  // namespace fusedlstm::cuda
