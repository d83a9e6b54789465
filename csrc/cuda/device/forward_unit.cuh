// Forward, one hidden unit of one batch row: what a step does outside the matrix products. Used by resident and STREAM
// kernels.
#pragma once
#include "rows.cuh"

namespace fusedlstm::cuda {

// What the biases of one hidden unit add to its sums.
template <class scalar_t, class Equations>
struct Bias {
  static constexpr CellSizes kSizes = Equations::kSizes;
  Sums<AccOf<scalar_t>, kSizes> sums = {};

  Bias() = default;
  __device__ __forceinline__ Bias(const ForwardArgs& a, int d, int u, int m = 0) {
    if (u >= a.rows.H || !a.bias_ih[d]) return;
#pragma unroll
    for (int q = 0; q < kSizes.gates; ++q) {
      const int64_t i = element(m * kSizes.gates + q, a.rows.H, u);
      const auto bias_ih = to_acc(at<scalar_t>(a.bias_ih[d], i)), bias_hh = to_acc(at<scalar_t>(a.bias_hh[d], i));
      if (q < kSizes.joined) {
        sums.joined[q] = bias_ih + bias_hh;
      } else {
        sums.from_input[q - kSizes.joined] = bias_ih;
        sums.from_hidden[q - kSizes.joined] = bias_hh;
      }
    }
  }
};

template <class scalar_t, class Equations>
struct ForwardUnit {
  static constexpr CellSizes kSizes = Equations::kSizes;
  using acc_t = AccOf<scalar_t>;
  // What a step's product is added to, and what of a gate that is apart waits beside it.
  struct Known {
    acc_t sums[kSizes.gates];
    acc_t from_input[at_least_one(kSizes.apart())];
  };
  using After = fusedlstm::After<acc_t, kSizes>;
  RowClock clock;
  int u;
  acc_t carried[at_least_one(kSizes.carried)];
  acc_t pre[kSizes.gates];  // W_ih x of the step to come
  const acc_t* pre_gates;   // at time 0

  ForwardUnit() = default;
  __device__ __forceinline__ ForwardUnit(const ForwardArgs& a, int d, int b, int u, int m = 0, bool exists = true)
      : clock(a.rows, d, b, m, exists),
        u(u),
        carried{},
        pre{},
        pre_gates(in_register(&at<const acc_t>(a.pre_gates[d], element(clock.b, a.pre_gates_stride_b, u)))) {}

  // As ForwardCell's.
  __device__ __forceinline__ void follow(const ForwardArgs& a, const ForwardUnit& first, int rows) {
    clock.b = first.clock.b + rows;
    pre_gates = first.pre_gates + element(rows, a.pre_gates_stride_b, 0);
  }

  __device__ __forceinline__ void start(const ForwardArgs& a) {
#pragma unroll
    for (int k = 0; k < kSizes.carried; ++k)
      carried[k] = started_from<scalar_t>(a, has_first_step(a.rows), a.rows.initial, 1 + k, a.rows.H, clock, u);
  }

  __device__ __forceinline__ void reset(const ForwardArgs& a) {
#pragma unroll
    for (int k = 0; k < kSizes.carried; ++k)
      carried[k] = state_or_zero<scalar_t>(a.rows.reset_state[1 + k], a.rows.H, a.rows, clock, u);
  }

  // Loads what nothing of the recurrence goes into, a step early, as it lies in memory: the first instruction that uses
  // a loaded value waits for it, even one that only converts it.
  __device__ __forceinline__ void prefetch(const ForwardArgs& a, const Step& step) {
    const acc_t* from = pre_gates_of(a, step);
    if (!clock.runs(step.t)) return;
#pragma unroll
    for (int q = 0; q < kSizes.gates; ++q) pre[q] = from[q * a.rows.H];
  }
  // Has it brought into L2.
  __device__ __forceinline__ void ask_l2(const ForwardArgs& a, const Step& step) const {
    const acc_t* from = pre_gates_of(a, step);
    if (!clock.runs(step.t)) return;
#pragma unroll
    for (int q = 0; q < kSizes.gates; ++q) prefetch_l2(from + q * a.rows.H);
  }

  // All that enters the gates but W_hh h.
  __device__ __forceinline__ Known known(const Bias<scalar_t, Equations>& bias) const {
    Known known{};
#pragma unroll
    for (int q = 0; q < kSizes.joined; ++q) known.sums[q] = pre[q] + bias.sums.joined[q];
#pragma unroll
    for (int q = 0; q < kSizes.apart(); ++q) {
      known.sums[kSizes.joined + q] = bias.sums.from_hidden[q];
      known.from_input[q] = pre[kSizes.joined + q] + bias.sums.from_input[q];
    }
    return known;
  }

  // Step t with the product added to what was known. Without branches, so that the steps of several cells may overlap:
  // a row that does not run it computes something and stays as it is.
  __device__ __forceinline__ After step(const ForwardArgs& a, int t, const Known& known, acc_t h_before) {
    Sums<acc_t, kSizes> sums{};
#pragma unroll
    for (int q = 0; q < kSizes.joined; ++q) sums.joined[q] = known.sums[q];
#pragma unroll
    for (int q = 0; q < kSizes.apart(); ++q) {
      sums.from_input[q] = known.from_input[q];
      sums.from_hidden[q] = known.sums[kSizes.joined + q];
    }
    const auto y = equations_of<Equations>(a).template forward<ActivationMath<scalar_t>>(sums, h_before, carried);
#pragma unroll
    for (int k = 0; k < kSizes.carried; ++k) carried[k] = clock.runs(t) ? y.carried[k] : carried[k];
    return y;
  }

  // Whether a step has to be saved for training.
  static __device__ __forceinline__ bool saves(const ForwardArgs& a) { return kSizes.saved > 0 && a.saved; }
  // What a step came to if the row runs it.
  __device__ __forceinline__ void save(const ForwardArgs& a, const Step& step, const After& y) const {
    const int row = first_saved(a.rows, clock.d, clock.m) + step.row + clock.b, H = a.rows.H;
    auto* saved = &at<scalar_t>(a.saved, element(row, kSizes.saved * H, u));
    auto* carried_after = &at<acc_t>(a.carried, element(row, kSizes.carried * H, u));
    if (!clock.runs(step.t)) return;
#pragma unroll
    for (int k = 0; k < kSizes.saved; ++k) saved[k * H] = from_acc<scalar_t>(y.saved[k]);
#pragma unroll
    for (int k = 0; k < kSizes.carried; ++k) carried_after[k * H] = y.carried[k];
  }

  __device__ __forceinline__ void finish(const ForwardArgs& a) const {
#pragma unroll
    for (int k = 0; k < kSizes.carried; ++k)
      leave_state<scalar_t>(a, has_last_step(a.rows), a.last, 1 + k, a.rows.H, clock, u, carried[k]);
  }

 private:
  __device__ __forceinline__ const acc_t* pre_gates_of(const ForwardArgs& a, const Step& step) const {
    return pre_gates + strided_row(a.rows, step, a.pre_gates_stride_t, a.pre_gates_stride_b);
  }
};

// Element r of h of one row: the unit's own value, or that of a projection.
template <class scalar_t>
struct ForwardHidden {
  using acc_t = AccOf<scalar_t>;
  RowClock clock;
  int r;
  acc_t h;
  scalar_t* output;  // in the first row of the output

  ForwardHidden() = default;
  __device__ __forceinline__ ForwardHidden(const ForwardArgs& a, RowClock clock, int r)
      : clock(clock),
        r(r),
        h(0),
        output(in_register(&at<scalar_t>(a.output, element(clock.b * a.rows.D + clock.d, a.rows.R, r)))) {}

  // As ForwardCell's.
  __device__ __forceinline__ void follow(const ForwardArgs& a, const ForwardHidden& first, int rows) {
    clock.b = first.clock.b + rows;
    output = first.output + element(rows, a.rows.D * a.rows.R, 0);
  }

  __device__ __forceinline__ void start(const ForwardArgs& a) {
    h = started_from<scalar_t>(a, has_first_step(a.rows), a.rows.initial, 0, a.rows.R, clock, r);
  }

  __device__ __forceinline__ void reset(const ForwardArgs& a) {
    h = state_or_zero<scalar_t>(a.rows.reset_state[0], a.rows.R, a.rows, clock, r);
  }

  // After step t, with its result if the row runs it.
  __device__ __forceinline__ void leave(int t, acc_t value) { h = clock.runs(t) ? rounded<scalar_t>(value) : h; }
  // Elements of the output before the step's.
  static __device__ __forceinline__ int64_t first_element(const ForwardArgs& a, const Step& step) {
    return element(step.row, a.rows.D * a.rows.R, 0);
  }
  __device__ __forceinline__ void store(const Step& step, int64_t first, acc_t value) const {
    if (clock.runs(step.t)) output[first] = from_acc<scalar_t>(value);
  }

  __device__ __forceinline__ void finish(const ForwardArgs& a) const {
    leave_state<scalar_t>(a, has_last_step(a.rows), a.last, 0, a.rows.R, clock, r, h);
  }
};

}  // namespace fusedlstm::cuda
