// Backward, one hidden unit of one batch row: what a step does outside the matrix products. Used by resident and STREAM
// kernels.
#pragma once
#include "rows.cuh"

namespace fusedlstm::cuda {

// Gradient of element r of h of one row, between two steps.
template <class scalar_t, class Equations>
struct BackwardHidden {
  using acc_t = AccOf<scalar_t>;
  static constexpr bool kTakesH = Equations::kSizes.takes_h;
  RowClock clock;
  int r;
  acc_t d_h;       // after a step that the row ran, of the h before it, and only what does not come through the product
  scalar_t d_out;  // of the step to come

  BackwardHidden() = default;
  __device__ __forceinline__ BackwardHidden(RowClock clock, int r) : clock(clock), r(r), d_h(0), d_out{} {}

  __device__ __forceinline__ void start(const BackwardArgs& a) {
    d_h = started_from<scalar_t>(a, has_last_step(a.rows), a.d_last, 0, a.rows.R, clock, r);
  }

  __device__ __forceinline__ void prefetch(const BackwardArgs& a, const Step& step) {
    const int64_t row = strided_row(a.rows, step, a.d_output_stride_t, a.d_output_stride_b);
    const auto* from = &at<scalar_t>(a.d_output, row + element(clock.b, a.d_output_stride_b, clock.d * a.rows.R + r));
    if (clock.runs(step.t) && a.d_output) d_out = *from;
  }

  // Gradient of the h that the step computed.
  __device__ __forceinline__ acc_t total() const { return d_h + to_acc(d_out); }

  // direct: of the h before step t, where the cell takes h itself, if the row ran the step.
  __device__ __forceinline__ void keep(int t, acc_t direct) {
    if constexpr (kTakesH) d_h = clock.runs(t) ? direct : d_h;
  }
  // After step t, whose d_from_hidden W_hh is `sum` if the row ran it: d_h is the gradient of the h before it.
  __device__ __forceinline__ void leave(int t, acc_t sum) { d_h = clock.runs(t) ? (kTakesH ? d_h + sum : sum) : d_h; }
  // That h was a reset state: returns its gradient, which goes no further back.
  __device__ __forceinline__ acc_t cut(bool is_reset) {
    const acc_t gradient = d_h;
    d_h = is_reset ? acc_t(0) : d_h;
    return gradient;
  }
  __device__ __forceinline__ void store_cut(const BackwardArgs& a, acc_t gradient) const {
    if (a.d_reset_state[0]) at<acc_t>(a.d_reset_state[0], element(clock.state_row(a.rows), a.rows.R, r)) += gradient;
  }

  __device__ __forceinline__ void finish(const BackwardArgs& a) const {
    leave_state<scalar_t>(a, has_first_step(a.rows), a.d_initial, 0, a.rows.R, clock, r, d_h);
  }
};

template <class scalar_t, class Equations>
struct BackwardUnit {
  static constexpr CellSizes kSizes = Equations::kSizes;
  static constexpr int kCarried = at_least_one(kSizes.carried);
  using acc_t = AccOf<scalar_t>;
  using Slopes = typename Equations::template Slopes<acc_t>;
  // Of what enters the gates, rounded; from_input: of the gates that are apart.
  struct Gradients {
    scalar_t from_hidden[kSizes.gates];
    scalar_t from_input[at_least_one(kSizes.apart())];
  };
  RowClock clock;
  int u;
  acc_t d_carried[kCarried];
  // Of the step to come, as it lies in memory.
  scalar_t saved[at_least_one(kSizes.saved)], h_before, h;
  acc_t carried[kCarried], carried_before[kCarried];
  acc_t d_from_outside[kCarried];  // gradients of its carried states from outside
  int first;                       // row of what was saved of batch row b, and of gradients, after the step's

  BackwardUnit() = default;
  __device__ __forceinline__ BackwardUnit(const BackwardArgs& a, int d, int b, int u, int m = 0, bool exists = true)
      : clock(a.rows, d, b, m, exists),
        u(u),
        d_carried{},
        saved{},
        h_before{},
        h{},
        carried{},
        carried_before{},
        d_from_outside{},
        first(in_register(first_saved(a.rows, d, m) + clock.b)) {}

  __device__ __forceinline__ void start(const BackwardArgs& a) {
#pragma unroll
    for (int k = 0; k < kSizes.carried; ++k)
      d_carried[k] = started_from<scalar_t>(a, has_last_step(a.rows), a.d_last, 1 + k, a.rows.H, clock, u);
  }

  // previous: the step before `step` in time, which is the next to run backward.
  __device__ __forceinline__ void prefetch(const BackwardArgs& a, const Step& step, const Step& previous) {
    const int H = a.rows.H;
    const auto* from = &at<scalar_t>(a.saved, element(first + step.row, kSizes.saved * H, u));
    const int64_t i = element(first + step.row, kSizes.carried * H, u);
    const auto* before = &at<acc_t>(a.carried, element(first + previous.row, kSizes.carried * H, u));
    if (!clock.runs(step.t)) return;
#pragma unroll
    for (int k = 0; k < kSizes.saved; ++k) saved[k] = from[k * H];
    if constexpr (kSizes.reads_h) h = output_at(a, step);
#pragma unroll
    for (int k = 0; k < kSizes.carried; ++k) {
      carried[k] = at<acc_t>(a.carried, i + k * H);
      if (a.d_carried) d_from_outside[k] = at<acc_t>(a.d_carried, i + k * H);
    }
    if (clock.first(step.t)) return;
    if constexpr (kSizes.takes_h) h_before = output_at(a, previous);
#pragma unroll
    for (int k = 0; k < kSizes.carried; ++k) carried_before[k] = before[k * H];
  }
  // The step fetched did not start from the states after the one before it.
  __device__ __forceinline__ void enter(const BackwardArgs& a, bool is_reset) {
    const auto& states = is_reset ? a.rows.reset_state : a.rows.initial;
    if constexpr (kSizes.takes_h)
      h_before = from_acc<scalar_t>(state_or_zero<scalar_t>(states[0], a.rows.R, a.rows, clock, u));
#pragma unroll
    for (int k = 0; k < kSizes.carried; ++k)
      carried_before[k] = state_or_zero<scalar_t>(states[1 + k], a.rows.H, a.rows, clock, u);
  }

  __device__ __forceinline__ Slopes slopes(const BackwardArgs& a) const {
    Known<acc_t, kSizes> known{};
#pragma unroll
    for (int k = 0; k < kSizes.saved; ++k) known.saved[k] = to_acc(saved[k]);
    known.h_before = to_acc(h_before);
    known.h = to_acc(h);
#pragma unroll
    for (int k = 0; k < kSizes.carried; ++k) {
      known.carried[k] = carried[k];
      known.carried_before[k] = carried_before[k];
    }
    return equations_of<Equations>(a).template slopes<ActivationMath<scalar_t>>(known);
  }

  // Step t, with d_h the whole gradient of its h and from_outside those of its carried states from outside. Gives the
  // gradients of what entered the gates, zeros where the row does not run the step, and returns that of the h before it
  // where the cell takes h itself.
  __device__ __forceinline__ acc_t step(const BackwardArgs& a, int t, const Slopes& slopes, acc_t d_h,
                                        const acc_t (&from_outside)[kCarried], Gradients& gradients) {
    const bool runs = clock.runs(t);
    acc_t d_states[kCarried] = {};
#pragma unroll
    for (int k = 0; k < kSizes.carried; ++k) d_states[k] = d_carried[k] + from_outside[k];
    const auto y = equations_of<Equations>(a).backward(slopes, d_h, d_states);
#pragma unroll
    for (int q = 0; q < kSizes.gates; ++q)
      gradients.from_hidden[q] = runs ? from_acc<scalar_t>(y.from_hidden[q]) : scalar_t{};
#pragma unroll
    for (int q = 0; q < kSizes.apart(); ++q)
      gradients.from_input[q] = runs ? from_acc<scalar_t>(y.from_input[kSizes.joined + q]) : scalar_t{};
#pragma unroll
    for (int k = 0; k < kSizes.carried; ++k) d_carried[k] = runs ? y.carried_before[k] : d_carried[k];
    return y.h_before;
  }

  // Elements of d_from_hidden and d_from_input before the step's, of direction 0 and member 0.
  static __device__ __forceinline__ int64_t first_element(const BackwardArgs& a, const Step& step) {
    return element(step.row, kSizes.gates * a.rows.H, 0);
  }
  __device__ __forceinline__ void store(const BackwardArgs& a, const Step& step, int64_t before,
                                        const Gradients& gradients) const {
    const int H = a.rows.H;
    const int64_t i = before + element(first, kSizes.gates * H, u);
    auto* from_hidden = &at<scalar_t>(a.d_from_hidden, i);
    if (!clock.runs(step.t)) return;
#pragma unroll
    for (int q = 0; q < kSizes.gates; ++q) from_hidden[q * H] = gradients.from_hidden[q];
    if constexpr (kSizes.apart() > 0) {
      auto* from_input = &at<scalar_t>(a.d_from_input, i);
#pragma unroll
      for (int q = 0; q < kSizes.gates; ++q)
        from_input[q * H] = q < kSizes.joined ? gradients.from_hidden[q] : gradients.from_input[q - kSizes.joined];
    }
  }

  // Carried state k before the step was a reset state: returns its gradient, which goes no further back.
  __device__ __forceinline__ acc_t cut(int k, bool is_reset) {
    const acc_t gradient = d_carried[k];
    d_carried[k] = is_reset ? acc_t(0) : d_carried[k];
    return gradient;
  }
  __device__ __forceinline__ void store_cut(const BackwardArgs& a, int k, acc_t gradient) const {
    if (a.d_reset_state[1 + k])
      at<acc_t>(a.d_reset_state[1 + k], element(clock.state_row(a.rows), a.rows.H, u)) += gradient;
  }

  __device__ __forceinline__ void finish(const BackwardArgs& a) const {
#pragma unroll
    for (int k = 0; k < kSizes.carried; ++k)
      leave_state<scalar_t>(a, has_first_step(a.rows), a.d_initial, 1 + k, a.rows.H, clock, u, d_carried[k]);
  }

 private:
  // Of cells whose layers have no projection: h of the unit is what the step put out.
  __device__ __forceinline__ scalar_t output_at(const BackwardArgs& a, const Step& step) const {
    return at<scalar_t>(a.output, element((step.row + clock.b) * a.rows.D + clock.d, a.rows.R, u));
  }
};

}  // namespace fusedlstm::cuda
