// One hidden unit of one batch row: what a step does outside the matrix products. Used by resident and STREAM kernels.
//
// Row states: a row whose sequence has ended keeps its state and writes nothing; a row that is reset enters
// the step from the reset state. Every element of state is owned by one thread for the whole sequence, so that nothing
// here needs synchronisation or atomics.
#pragma once
#include "cells/all.h"
#include "cuda/host/launch.h"
#include "primitives.cuh"

namespace fusedlstm::cuda {

// The `Math` of cells/cell.h. Activations in the precision that the stored type can show: the one-instruction tanh adds
// 2 % to the rounding error of a bfloat16 sequence, but would double that of a float16 one.
template <class acc_t>
struct CellMath {
  static constexpr acc_t kOne = 1;
  static __device__ __forceinline__ acc_t rounded_product(acc_t a, acc_t b) { return multiply_rounded(a, b); }
};
template <class scalar_t>
struct ActivationMath : CellMath<float> {
  static __device__ __forceinline__ float tanh(float x) { return tanhf(x); }
  static __device__ __forceinline__ float accurate_tanh(float x) { return tanhf(x); }
  static __device__ __forceinline__ float sigmoid(float x) { return divide_fast(1.0f, 1.0f + exp_fast(-x)); }
};
template <>
struct ActivationMath<BFloat16> : CellMath<float> {
  static __device__ __forceinline__ float tanh(float x) { return tanh_fast(x); }
  static __device__ __forceinline__ float accurate_tanh(float x) { return tanh_fast(x); }
  static __device__ __forceinline__ float sigmoid(float x) { return 0.5f + 0.5f * tanh_fast(0.5f * x); }
};
template <>
struct ActivationMath<double> : CellMath<double> {
  static __device__ __forceinline__ double tanh(double x) { return ::tanh(x); }
  static __device__ __forceinline__ double accurate_tanh(double x) { return ::tanh(x); }
  static __device__ __forceinline__ double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }
};

// What a step computes, a type of csrc/cells, as the layer of a call has it.
template <class Equations>
__device__ __forceinline__ Equations equations_of(const LayerArgs& a) {
  return make_cell<Equations>(a.is_relu);
}

// Rows and sizes are int, and are multiplied as such: 64-bit products take four instructions each, and a thread of the
// resident kernels would do dozens in every time step.
__device__ __forceinline__ int64_t element(int row, int pitch, int column) {
  return int64_t{row} * pitch + column;
}

// Steps that batch row b runs. Lengths stay on the device, where nobody has checked them: none may lead out of bounds.
// Packed rows are the same for all members m of an ensemble.
__device__ __forceinline__ int length_of(const RowStates& rows, int b, int m = 0) {
  if (!rows.lengths) return rows.T;
  const int64_t length = rows.lengths[rows.row_offsets ? b : m * rows.B + b];
  return static_cast<int>(length < 0 ? 0 : length > rows.T ? rows.T : length);
}

// The row of batch row b at time t in a tensor [N, ...].
__device__ __forceinline__ int row_of(const RowStates& rows, int t, int b) {
  return (rows.row_offsets ? static_cast<int>(rows.row_offsets[t]) : t * rows.B) + b;
}

// A time before the first step or after the last, which no row runs.
inline constexpr int kNoTime = 0x7FFFFFFF;

// One time step, as far as it is the same for all units and batch rows.
struct Step {
  int t = kNoTime;
  int row = 0;  // of batch row 0 in a tensor [N, ...]
};
__device__ __forceinline__ Step step_of(const RowStates& rows, int t) {
  return {t, row_of(rows, t, 0)};
}

// The first row that direction d of member m has in a tensor [M, D, N, ...], counted as RowClock counts.
__device__ __forceinline__ int first_saved(const RowStates& rows, int d, int m) {
  return (d + m * (rows.D - 1)) * rows.N;
}

// The element of batch row 0 in what comes with strides: pre_gates forward, d_output backward.
__device__ __forceinline__ int64_t strided_row(const RowStates& rows, const Step& step, int64_t stride_t,
                                               int stride_b) {
  return rows.row_offsets ? int64_t{step.row} * stride_b : step.t * stride_t;
}

// Where one batch row of one direction is in time.
//
// Member m of an ensemble begins m * N rows later in a tensor [M, N, ...], which is as if `b` were. To keep the indices
// of the time loop as they are for one layer, it is, and the others make up for that with constants of their own.
struct RowClock {
  int b, length, d, m;

  RowClock() = default;
  // One that does not exist never runs, is never reset and reads nothing.
  __device__ __forceinline__ RowClock(const RowStates& rows, int d, int b, int m, bool exists = true)
      : b(b + m * rows.N), length(exists ? length_of(rows, b, m) : -1), d(d), m(m) {}

  __device__ __forceinline__ bool exists() const { return length >= 0; }
  __device__ __forceinline__ bool runs(int t) const { return t < length; }
  __device__ __forceinline__ bool first(int t) const { return runs(t) && t == (d == 0 ? 0 : length - 1); }
  __device__ __forceinline__ int previous(int t) const { return d == 0 ? t - 1 : t + 1; }
  // The row in a tensor [M, D, B, ...].
  __device__ __forceinline__ int state_row(const RowStates& rows) const {
    return (m * rows.D + d) * rows.B - m * rows.N + b;
  }
};

__device__ __forceinline__ int time_of(int d, int s, int steps) {
  return d == 0 ? s : steps - 1 - s;
}

template <class T>
__device__ __forceinline__ T& at(const void* base, int64_t i) {
  return const_cast<T*>(static_cast<const T*>(base))[i];
}

// x as scalar_t stores it, computed on as acc_t.
template <class scalar_t>
__device__ __forceinline__ AccOf<scalar_t> rounded(AccOf<scalar_t> x) {
  return to_acc(from_acc<scalar_t>(x));
}

// Whether the row is reset before the step of time t, as it lies in memory.
__device__ __forceinline__ uint8_t reset_flag(const RowStates& rows, const RowClock& clock, int t) {
  if (!rows.reset || t == kNoTime || !clock.exists()) return 0;
  return at<uint8_t>(rows.reset, t * rows.B + clock.b);
}
__device__ __forceinline__ bool is_reset(const RowStates& rows, const RowClock& clock, int t) {
  return reset_flag(rows, clock, t) != 0;
}

// Element u of a state of `size` elements that the row starts step t from, if that is not the step before's.
template <class scalar_t>
__device__ __forceinline__ AccOf<scalar_t> state_or_zero(const void* state, int size, const RowStates& rows,
                                                         const RowClock& clock, int u) {
  return state ? to_acc(at<scalar_t>(state, element(clock.state_row(rows), size, u))) : AccOf<scalar_t>(0);
}

// ---- forward ------------------------------------------------------------------------------------------------------

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

  __device__ __forceinline__ void start(const ForwardArgs& a) {
#pragma unroll
    for (int k = 0; k < kSizes.carried; ++k)
      carried[k] = state_or_zero<scalar_t>(a.rows.initial[1 + k], a.rows.H, a.rows, clock, u);
  }

  __device__ __forceinline__ void reset(const ForwardArgs& a) {
#pragma unroll
    for (int k = 0; k < kSizes.carried; ++k)
      carried[k] = state_or_zero<scalar_t>(a.rows.reset_state[1 + k], a.rows.H, a.rows, clock, u);
  }

  // Loads what nothing of the recurrence goes into, a step early, as it lies in memory: the first instruction that uses
  // a loaded value waits for it, even one that only converts it.
  __device__ __forceinline__ void prefetch(const ForwardArgs& a, const Step& step) {
    const acc_t* from = pre_gates + strided_row(a.rows, step, a.pre_gates_stride_t, a.pre_gates_stride_b);
    if (!clock.runs(step.t)) return;
#pragma unroll
    for (int q = 0; q < kSizes.gates; ++q) pre[q] = from[q * a.rows.H];
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
      at<scalar_t>(a.last[1 + k], element(clock.state_row(a.rows), a.rows.H, u)) = from_acc<scalar_t>(carried[k]);
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

  __device__ __forceinline__ void start(const ForwardArgs& a) {
    h = state_or_zero<scalar_t>(a.rows.initial[0], a.rows.R, a.rows, clock, r);
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
    at<scalar_t>(a.last[0], element(clock.state_row(a.rows), a.rows.R, r)) = from_acc<scalar_t>(h);
  }
};

// ---- backward -----------------------------------------------------------------------------------------------------

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
    d_h = state_or_zero<scalar_t>(a.d_last[0], a.rows.R, a.rows, clock, r);
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
    at<scalar_t>(a.d_initial[0], element(clock.state_row(a.rows), a.rows.R, r)) = from_acc<scalar_t>(d_h);
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
      d_carried[k] = state_or_zero<scalar_t>(a.d_last[1 + k], a.rows.H, a.rows, clock, u);
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
      at<scalar_t>(a.d_initial[1 + k], element(clock.state_row(a.rows), a.rows.H, u)) =
          from_acc<scalar_t>(d_carried[k]);
  }

 private:
  // Of cells whose layers have no projection: h of the unit is what the step put out.
  __device__ __forceinline__ scalar_t output_at(const BackwardArgs& a, const Step& step) const {
    return at<scalar_t>(a.output, element((step.row + clock.b) * a.rows.D + clock.d, a.rows.R, u));
  }
};

}  // namespace fusedlstm::cuda
