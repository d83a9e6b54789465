// One hidden unit of one batch row: what a step does outside the matrix products. Used by resident and STREAM kernels.
//
// Row states: a row whose sequence has ended keeps its state and writes nothing; a row that is reset enters
// the step from reset_h, reset_c. Every element of state is owned by one thread for the whole sequence, so that nothing
// here needs synchronisation or atomics.
#pragma once
#include "cells/lstm.h"
#include "cuda/host/launch.h"
#include "primitives.cuh"

namespace fusedlstm::cuda {

// The `Math` of cells/lstm.h. Activations in the precision that the stored type can show: the one-instruction tanh adds
// 2 % to the rounding error of a bfloat16 sequence, but would double that of a float16 one.
template <class acc_t>
struct CellMath {
  static constexpr acc_t kOne = 1;
  static __device__ __forceinline__ acc_t rounded_product(acc_t a, acc_t b) { return multiply_rounded(a, b); }
};
template <class scalar_t>
struct ActivationMath : CellMath<float> {
  static __device__ __forceinline__ float tanh(float x) { return tanhf(x); }
  static __device__ __forceinline__ float sigmoid(float x) { return divide_fast(1.0f, 1.0f + exp_fast(-x)); }
};
template <>
struct ActivationMath<BFloat16> : CellMath<float> {
  static __device__ __forceinline__ float tanh(float x) { return tanh_fast(x); }
  static __device__ __forceinline__ float sigmoid(float x) { return 0.5f + 0.5f * tanh_fast(0.5f * x); }
};
template <>
struct ActivationMath<double> : CellMath<double> {
  static __device__ __forceinline__ double tanh(double x) { return ::tanh(x); }
  static __device__ __forceinline__ double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }
};

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

// Element u of the h (size R) or c (size H) that the row starts step t from, if that is not the step before's.
template <class scalar_t>
__device__ __forceinline__ AccOf<scalar_t> state_or_zero(const void* state, int size, const RowStates& rows,
                                                         const RowClock& clock, int u) {
  return state ? to_acc(at<scalar_t>(state, element(clock.state_row(rows), size, u))) : AccOf<scalar_t>(0);
}

// ---- forward ------------------------------------------------------------------------------------------------------

// b_ih + b_hh of one hidden unit.
template <class scalar_t>
struct Bias {
  AccOf<scalar_t> gate[4] = {};

  Bias() = default;
  __device__ __forceinline__ Bias(const ForwardArgs& a, int d, int u, int m = 0) {
    if (u >= a.rows.H || !a.bias_ih[d]) return;
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const int64_t i = element(m * 4 + q, a.rows.H, u);
      gate[q] = to_acc(at<scalar_t>(a.bias_ih[d], i)) + to_acc(at<scalar_t>(a.bias_hh[d], i));
    }
  }
};

template <class scalar_t>
struct ForwardUnit {
  using acc_t = AccOf<scalar_t>;
  RowClock clock;
  int u;
  acc_t c;
  acc_t pre[4];            // W_ih x of the step to come
  const acc_t* pre_gates;  // at time 0

  ForwardUnit() = default;
  __device__ __forceinline__ ForwardUnit(const ForwardArgs& a, int d, int b, int u, int m = 0, bool exists = true)
      : clock(a.rows, d, b, m, exists),
        u(u),
        c(0),
        pre{},
        pre_gates(in_register(&at<const acc_t>(a.pre_gates[d], element(clock.b, a.pre_gates_stride_b, u)))) {}

  __device__ __forceinline__ void start(const ForwardArgs& a) {
    c = state_or_zero<scalar_t>(a.rows.c_0, a.rows.H, a.rows, clock, u);
  }

  __device__ __forceinline__ void reset(const ForwardArgs& a) {
    c = state_or_zero<scalar_t>(a.rows.reset_c, a.rows.H, a.rows, clock, u);
  }

  // Loads what nothing of the recurrence goes into, a step early, as it lies in memory: the first instruction that uses
  // a loaded value waits for it, even one that only converts it.
  __device__ __forceinline__ void prefetch(const ForwardArgs& a, const Step& step) {
    const acc_t* from = pre_gates + strided_row(a.rows, step, a.pre_gates_stride_t, a.pre_gates_stride_b);
    if (!clock.runs(step.t)) return;
#pragma unroll
    for (int q = 0; q < 4; ++q) pre[q] = from[q * a.rows.H];
  }

  // The gates' pre-activations but for W_hh h.
  __device__ __forceinline__ void known_sums(const Bias<scalar_t>& bias, acc_t (&sums)[4]) const {
#pragma unroll
    for (int q = 0; q < 4; ++q) sums[q] = pre[q] + bias.gate[q];
  }

  // Step t with the whole pre-activations. Without branches, so that the steps of several cells may overlap: a row that
  // does not run it computes something and stays as it is.
  __device__ __forceinline__ CellForward<acc_t> step(int t, const acc_t (&sums)[4]) {
    const auto y = cell_forward<acc_t, ActivationMath<scalar_t>>(sums[0], sums[1], sums[2], sums[3], c);
    c = clock.runs(t) ? y.c : c;
    return y;
  }

  // What a step came to if the row runs it, for training.
  __device__ __forceinline__ void save(const ForwardArgs& a, const Step& step, const CellForward<acc_t>& y) const {
    const int row = first_saved(a.rows, clock.d, clock.m) + step.row + clock.b, H = a.rows.H;
    auto* gates = &at<scalar_t>(a.gates, element(row, 4 * H, u));
    auto* c_after = &at<acc_t>(a.cell_states, element(row, H, u));
    if (!clock.runs(step.t)) return;
    gates[0] = from_acc<scalar_t>(y.i);
    gates[H] = from_acc<scalar_t>(y.f);
    gates[2 * H] = from_acc<scalar_t>(y.g);
    gates[3 * H] = from_acc<scalar_t>(y.o);
    *c_after = y.c;
  }

  __device__ __forceinline__ void finish(const ForwardArgs& a) const {
    at<scalar_t>(a.c_n, element(clock.state_row(a.rows), a.rows.H, u)) = from_acc<scalar_t>(c);
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
    h = state_or_zero<scalar_t>(a.rows.h_0, a.rows.R, a.rows, clock, r);
  }

  __device__ __forceinline__ void reset(const ForwardArgs& a) {
    h = state_or_zero<scalar_t>(a.rows.reset_h, a.rows.R, a.rows, clock, r);
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
    at<scalar_t>(a.h_n, element(clock.state_row(a.rows), a.rows.R, r)) = from_acc<scalar_t>(h);
  }
};

// ---- backward -----------------------------------------------------------------------------------------------------

// Gradient of element r of h of one row, between two steps.
template <class scalar_t>
struct BackwardHidden {
  using acc_t = AccOf<scalar_t>;
  RowClock clock;
  int r;
  acc_t d_h;
  scalar_t d_out;  // of the step to come

  BackwardHidden() = default;
  __device__ __forceinline__ BackwardHidden(RowClock clock, int r) : clock(clock), r(r), d_h(0), d_out{} {}

  __device__ __forceinline__ void start(const BackwardArgs& a) {
    d_h = state_or_zero<scalar_t>(a.d_h_n, a.rows.R, a.rows, clock, r);
  }

  __device__ __forceinline__ void prefetch(const BackwardArgs& a, const Step& step) {
    const int64_t row = strided_row(a.rows, step, a.d_output_stride_t, a.d_output_stride_b);
    const auto* from = &at<scalar_t>(a.d_output, row + element(clock.b, a.d_output_stride_b, clock.d * a.rows.R + r));
    if (clock.runs(step.t) && a.d_output) d_out = *from;
  }

  // Gradient of the h that the step computed.
  __device__ __forceinline__ acc_t total() const { return d_h + to_acc(d_out); }

  // After step t, whose d_gates W_hh is `sum` if the row ran it: d_h is the gradient of the h before it.
  __device__ __forceinline__ void leave(int t, acc_t sum) { d_h = clock.runs(t) ? sum : d_h; }
  // That h was reset_h: returns its gradient, which goes no further back.
  __device__ __forceinline__ acc_t cut(bool is_reset) {
    const acc_t gradient = d_h;
    d_h = is_reset ? acc_t(0) : d_h;
    return gradient;
  }
  __device__ __forceinline__ void store_cut(const BackwardArgs& a, acc_t gradient) const {
    if (a.d_reset_h) at<acc_t>(a.d_reset_h, element(clock.state_row(a.rows), a.rows.R, r)) += gradient;
  }

  __device__ __forceinline__ void finish(const BackwardArgs& a) const {
    at<scalar_t>(a.d_h_0, element(clock.state_row(a.rows), a.rows.R, r)) = from_acc<scalar_t>(d_h);
  }
};

template <class scalar_t>
struct BackwardUnit {
  using acc_t = AccOf<scalar_t>;
  RowClock clock;
  int u;
  acc_t d_c;
  scalar_t gate[4];  // of the step to come
  acc_t c, c_prev;
  acc_t d_cell_state;  // the gradient of its cell state from outside
  int first;           // row of what was saved of batch row b, and of d_gates, after the step's

  BackwardUnit() = default;
  __device__ __forceinline__ BackwardUnit(const BackwardArgs& a, int d, int b, int u, int m = 0, bool exists = true)
      : clock(a.rows, d, b, m, exists),
        u(u),
        d_c(0),
        gate{},
        c(0),
        c_prev(0),
        d_cell_state(0),
        first(in_register(first_saved(a.rows, d, m) + clock.b)) {}

  __device__ __forceinline__ void start(const BackwardArgs& a) {
    d_c = state_or_zero<scalar_t>(a.d_c_n, a.rows.H, a.rows, clock, u);
  }

  // previous: the step before `step` in time, which is the next to run backward.
  __device__ __forceinline__ void prefetch(const BackwardArgs& a, const Step& step, const Step& previous) {
    const int H = a.rows.H;
    const auto* gates = &at<scalar_t>(a.gates, element(first + step.row, 4 * H, u));
    const int64_t i = element(first + step.row, H, u);
    const auto* c_before = &at<acc_t>(a.cell_states, element(first + previous.row, H, u));
    if (!clock.runs(step.t)) return;
#pragma unroll
    for (int q = 0; q < 4; ++q) gate[q] = gates[q * H];
    c = at<acc_t>(a.cell_states, i);
    if (a.d_cell_states) d_cell_state = at<acc_t>(a.d_cell_states, i);
    if (!clock.first(step.t)) c_prev = *c_before;
  }
  // The step fetched did not start from the c of the one before it.
  __device__ __forceinline__ void enter(const BackwardArgs& a, bool is_reset) {
    c_prev = state_or_zero<scalar_t>(is_reset ? a.rows.reset_c : a.rows.c_0, a.rows.H, a.rows, clock, u);
  }

  __device__ __forceinline__ CellSlopes<acc_t> slopes() const {
    return cell_slopes<acc_t, ActivationMath<scalar_t>>(to_acc(gate[0]), to_acc(gate[1]), to_acc(gate[2]),
                                                        to_acc(gate[3]), c, c_prev);
  }

  // Step t, with d_h the whole gradient of o * tanh(c) and d_cell_state that of c from outside. Returns d_gates
  // rounded, zeros where the row does not run the step.
  __device__ __forceinline__ void step(int t, const CellSlopes<acc_t>& slopes, acc_t d_h, acc_t d_cell_state,
                                       scalar_t (&d_gates)[4]) {
    const bool runs = clock.runs(t);
    const auto y = cell_backward<acc_t>(slopes, d_h, d_c + d_cell_state);
    d_gates[0] = runs ? from_acc<scalar_t>(y.d_i) : scalar_t{};
    d_gates[1] = runs ? from_acc<scalar_t>(y.d_f) : scalar_t{};
    d_gates[2] = runs ? from_acc<scalar_t>(y.d_g) : scalar_t{};
    d_gates[3] = runs ? from_acc<scalar_t>(y.d_o) : scalar_t{};
    d_c = runs ? y.d_c_prev : d_c;
  }

  // Elements of d_gates before the step's, of direction 0 and member 0.
  static __device__ __forceinline__ int64_t first_element(const BackwardArgs& a, const Step& step) {
    return element(step.row, 4 * a.rows.H, 0);
  }
  __device__ __forceinline__ void store(const BackwardArgs& a, const Step& step, int64_t before,
                                        const scalar_t (&d_gates)[4]) const {
    const int H = a.rows.H;
    auto* to = &at<scalar_t>(a.d_gates, before + element(first, 4 * H, u));
    if (!clock.runs(step.t)) return;
#pragma unroll
    for (int q = 0; q < 4; ++q) to[q * H] = d_gates[q];
  }

  // The c before the step was reset_c: returns its gradient, which goes no further back.
  __device__ __forceinline__ acc_t cut(bool is_reset) {
    const acc_t gradient = d_c;
    d_c = is_reset ? acc_t(0) : d_c;
    return gradient;
  }
  __device__ __forceinline__ void store_cut(const BackwardArgs& a, acc_t gradient) const {
    if (a.d_reset_c) at<acc_t>(a.d_reset_c, element(clock.state_row(a.rows), a.rows.H, u)) += gradient;
  }

  __device__ __forceinline__ void finish(const BackwardArgs& a) const {
    at<scalar_t>(a.d_c_0, element(clock.state_row(a.rows), a.rows.H, u)) = from_acc<scalar_t>(d_c);
  }
};

}  // namespace fusedlstm::cuda
