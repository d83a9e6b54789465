// Forward, one batch row of a recurrence with variants.
#pragma once
#include "varied_row.cuh"

namespace fusedlstm::cuda {

// Where a row is between its steps: in global memory, or in the block's own.
template <class acc_t>
struct RowMemory {
  acc_t* states[kMaxStates];  // [H]
  acc_t* operand;             // [H], masked h; null without a mask
  acc_t* sums;                // [GH], what the product came to, and room for the step
  const acc_t* from_input;    // [GH], of the step
};

template <class acc_t, class Cell>
class VariedForward : VariedRow<acc_t, Cell> {
  using Base = VariedRow<acc_t, Cell>;
  using Base::kSizes, Base::clock, Base::cell, Base::H;
  using typename Base::Math;
  using Norm = RowNorm<acc_t>;

 public:
  __device__ __forceinline__ VariedForward(const VariedForwardArgs& args, int b, const RowMemory<acc_t>& memory)
      : Base(args, b), a(args), memory(memory) {}

  __device__ __forceinline__ void start() {
    Base::for_each_unit([&](int u) {
      for (int k = 0; k < kSizes.states; ++k)
        state(k, u) = state_or_zero<acc_t>(a.rows.initial[k], H, a.rows, clock, u);
    });
  }

  // The states that it ends with, where they are not in their place already.
  __device__ __forceinline__ void leave() const {
    Base::for_each_unit([&](int u) {
      for (int k = 0; k < kSizes.states; ++k) Base::own(a.last[k], H, u) = state(k, u);
    });
  }

  // The states that the step of time t begins with, and what h enters its product as.
  __device__ __forceinline__ void enter(int t) {
    const bool is_new = is_reset(a.rows, clock, t);
    Base::for_each_unit([&](int u) {
      for (int k = 0; k < kSizes.states && is_new; ++k)
        state(k, u) = state_or_zero<acc_t>(a.rows.reset_state[k], H, a.rows, clock, u);
      if (!memory.operand) return;
      const acc_t entered = memory.operand[u] = state(0, u) * Base::factor(a.mask, t, u);
      if (a.entered) Base::of_step(a.entered, t, H, u) = entered;
    });
  }

  __device__ __forceinline__ void step(int t) {
    if (!clock.runs(t)) return;
    Base::sums = {};
    Norms of_gates;
    Norm of_c{0, 1};
    if (a.gain || a.gain_ih) of_gates = norms_of_gates();
    if constexpr (kSizes.carried > 0) {
      // In halves also where c is not normalised: one copy of the code.
      Base::for_each_unit([&](int u) { put(u, begin(t, u, of_gates)); });
      if (a.gain_c) {
        Norm found[1];
        find(found, H, [&](auto take) { Base::for_each_unit([&](int u) { take({taken(u).carried[0]}); }); });
        of_c = found[0];
      }
      Base::for_each_unit([&](int u) { end(t, u, taken(u), of_c); });
    } else {
      Base::for_each_unit([&](int u) { end(t, u, begin(t, u, of_gates), of_c); });
    }
    if (a.scales && threadIdx.x == 0) {
      acc_t* scales = &Base::of_step(a.scales, t, kVariedScales, 0);
      scales[kScale] = of_gates.sums.scale;
      scales[kMeanC] = of_c.mean;
      scales[kScaleC] = of_c.scale;
      scales[kScaleIh] = of_gates.input.scale;
    }
  }

 private:
  using Begun = fusedlstm::Begun<acc_t, kSizes, Cell::kSaved>;
  const VariedForwardArgs& a;
  const RowMemory<acc_t> memory;

  __device__ __forceinline__ acc_t& state(int k, int u) const { return memory.states[k][u]; }

  // Of n values each, those of a thread being what visit(take) calls take with, one of each norm.
  template <int kNorms, class Visit>
  __device__ __forceinline__ void find(Norm (&norms)[kNorms], int n, Visit visit) {
    using Values = acc_t[kNorms];
    const acc_t share = 1 / static_cast<acc_t>(n);
    Values sums{}, squares{};
    visit([&](const Values& x) {
      for (int k = 0; k < kNorms; ++k) sums[k] += x[k];
    });
    Base::sums.of(sums);
    for (int k = 0; k < kNorms; ++k) norms[k].mean = sums[k] * share;
    visit([&](const Values& x) {
      for (int k = 0; k < kNorms; ++k) squares[k] += (x[k] - norms[k].mean) * (x[k] - norms[k].mean);
    });
    Base::sums.of(squares);
    for (int k = 0; k < kNorms; ++k) norms[k].scale = 1 / std::sqrt(squares[k] * share + static_cast<acc_t>(a.eps));
  }

  // Of what is made of W_hh h, or of both sums; and of W_ih x.
  struct Norms {
    Norm sums{0, 1}, input{0, 1};
  };
  __device__ __forceinline__ Norms norms_of_gates() {
    Norms all;
    if constexpr (Cell::kNormsBoth) {
      Norm one[1];
      find(one, kSizes.gates * H, [&](auto take) { Base::for_each_gate([&](int i) { take({sum(i)}); }); });
      all.sums = one[0];
    } else {
      Norm both[2];
      find(both, kSizes.gates * H,
           [&](auto take) { Base::for_each_gate([&](int i) { take({sum(i), memory.from_input[i]}); }); });
      all = {both[0], both[1]};
    }
    return all;
  }

  // What a gate's norm has, element i of the row.
  __device__ __forceinline__ acc_t sum(int i) const {
    return Cell::kNormsBoth ? memory.sums[i] + memory.from_input[i] : memory.sums[i];
  }

  // Value i of a row after its norm, which is kept in `all`, and the gain.
  __device__ __forceinline__ acc_t normed(const Norm& norm, acc_t value, const void* gain, void* all, int t,
                                          int i) const {
    value = norm.of(value);
    if (all) Base::of_step(all, t, kSizes.gates * H, i) = value;
    return value * Base::parameter(gain, i);
  }

  __device__ __forceinline__ Sums<acc_t, kSizes> sums_of(int t, int u, const Norms& of_gates) const {
    Sums<acc_t, kSizes> all{};
    for (int q = 0; q < kSizes.gates; ++q) {
      const int i = q * H + u;
      acc_t hidden = sum(i), input = Cell::kNormsBoth ? acc_t(0) : memory.from_input[i];
      if (a.gain) hidden = normed(of_gates.sums, hidden, a.gain, a.normed, t, i);
      if (a.gain_ih) input = normed(of_gates.input, input, a.gain_ih, a.normed_ih, t, i);
      if (a.bias) hidden += Base::parameter(a.bias, i);
      if (a.bias_ih) input += Base::parameter(a.bias_ih, i);
      if (q < kSizes.joined) {
        all.joined[q] = input + hidden;
      } else {
        all.from_input[q - kSizes.joined] = input;
        all.from_hidden[q - kSizes.joined] = hidden;
      }
    }
    return all;
  }

  // One unit up to its new cell state.
  __device__ __forceinline__ Begun begin(int t, int u, const Norms& of_gates) const {
    acc_t w[kPeepholes];
    Base::peepholes(u, w);
    const acc_t c_before[1] = {kSizes.carried > 0 ? state(kSizes.states - 1, u) : acc_t(0)};
    return cell.template begin<Math>(sums_of(t, u, of_gates), state(0, u), c_before, w);
  }

  // Of a cell with a cell state a step waits where its sums were, until c is normalised; c is computed anew from what
  // it is made of.
  __device__ __forceinline__ void put(int u, const Begun& begun) const {
    static_assert(Cell::kSaved == kSizes.gates);
    for (int k = 0; k < Cell::kSaved; ++k) memory.sums[k * H + u] = begun.saved[k];
  }
  __device__ __forceinline__ Begun taken(int u) const {
    Begun begun{};
    for (int k = 0; k < Cell::kSaved; ++k) begun.saved[k] = memory.sums[k * H + u];
    const acc_t c_before[1] = {state(1, u)};
    begun.carried[0] = cell.template carried<Math>(begun.saved, c_before);
    return begun;
  }

  // The rest of a unit's step.
  __device__ __forceinline__ void end(int t, int u, Begun begun, const Norm& of_c) const {
    const acc_t c = begun.carried[0];
    const acc_t h = cell.template end<Math>(begun.saved, begun.h, Base::norms_c() ? Base::seen(of_c.of(c), u) : c);
    if (a.saved) {
      for (int k = 0; k < Cell::kSaved; ++k) Base::of_step(a.saved, t, Cell::kSaved * H, k * H + u) = begun.saved[k];
      for (int k = 0; k < kSizes.states; ++k) Base::of_step(a.before[k], t, H, u) = state(k, u);
    }
    if constexpr (kSizes.carried > 0) state(1, u) = kept(1, t, u, c);
    Base::of_step(a.output, t, H, u) = state(0, u) = kept(0, t, u, h);
  }
  // A new state after zoneout.
  __device__ __forceinline__ acc_t kept(int k, int t, int u, acc_t after) const {
    return a.zoneout[k].data ? zoned_out<Math>(Base::factor(a.zoneout[k], t, u), state(k, u), after) : after;
  }
};

}  // namespace fusedlstm::cuda
