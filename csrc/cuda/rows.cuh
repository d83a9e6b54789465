// One hidden unit of one batch row: what a step does outside the matrix products. Used by resident and STREAM kernels.
//
// Level 2. Row states: a row whose sequence has ended keeps its state and writes nothing; a row that is reset enters
// the step from reset_h, reset_c. Every element of state is owned by one thread for the whole sequence, so that nothing
// here needs synchronisation or atomics.
#pragma once
#include "../cell.h"
#include "launch.h"
#include "primitives.cuh"

namespace fusedlstm::gpu {

// Activations in the precision that the stored type can show: the one-instruction tanh adds 2 % to the rounding error
// of a bfloat16 sequence, but would double that of a float16 one.
template <class scalar_t>
struct ActivationMath {
  static constexpr float kOne = 1;
  static __device__ __forceinline__ float tanh(float x) { return tanhf(x); }
  static __device__ __forceinline__ float sigmoid(float x) { return divide_fast(1.0f, 1.0f + exp_fast(-x)); }
};
template <>
struct ActivationMath<BFloat16> {
  static constexpr float kOne = 1;
  static __device__ __forceinline__ float tanh(float x) { return tanh_fast(x); }
  static __device__ __forceinline__ float sigmoid(float x) { return 0.5f + 0.5f * tanh_fast(0.5f * x); }
};
template <>
struct ActivationMath<double> {
  static constexpr double kOne = 1;
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
  int row = 0;          // of batch row 0 in a tensor [N, ...]
  int saved = 0;        // of batch row 0 in a tensor [M, D, N, ...], counted as RowClock counts
  int64_t strided = 0;  // of batch row 0 in what comes with strides: pre_gates forward, d_output backward
};

// The first row that direction d of member m has in a tensor [M, D, N, ...], counted as RowClock counts.
__device__ __forceinline__ int first_saved(const RowStates& rows, int d, int m) {
  return (d + m * (rows.D - 1)) * rows.N;
}

__device__ __forceinline__ Step step_of(const RowStates& rows, int d, int m, int t, int64_t stride_t, int stride_b) {
  const int row = row_of(rows, t, 0);
  return {t, row, first_saved(rows, d, m) + row, rows.row_offsets ? int64_t{row} * stride_b : t * stride_t};
}
__device__ __forceinline__ Step step_of(const ForwardArgs& a, int d, int m, int t) {
  return step_of(a.rows, d, m, t, a.pre_gates_stride_t, a.pre_gates_stride_b);
}
__device__ __forceinline__ Step step_of(const BackwardArgs& a, int d, int m, int t) {
  return step_of(a.rows, d, m, t, a.d_output_stride_t, a.d_output_stride_b);
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
  __device__ __forceinline__ bool first(int t) const { return t == (d == 0 ? 0 : length - 1); }
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

// Whether the row is reset before the step of time t.
__device__ __forceinline__ bool is_reset(const RowStates& rows, const RowClock& clock, int t) {
  if (!rows.reset || t == kNoTime) return false;  // the same for all threads
  return clock.exists() && rows.reset[t * rows.B + clock.b];
}

// Element u of the h (size R) or c (size H) that the row starts step t from, if that is not the step before's.
template <class scalar_t>
__device__ __forceinline__ AccOf<scalar_t> state_or_zero(const void* state, int size, const RowStates& rows,
                                                         const RowClock& clock, int u) {
  return state ? to_acc(at<scalar_t>(state, element(clock.state_row(rows), size, u))) : AccOf<scalar_t>(0);
}

// ---- forward ------------------------------------------------------------------------------------------------------

template <class scalar_t>
struct ForwardUnit {
  using acc_t = AccOf<scalar_t>;
  RowClock clock;
  int u;
  acc_t c;
  acc_t bias[4];
  acc_t pre[4];  // of the step to come

  ForwardUnit() = default;
  __device__ __forceinline__ ForwardUnit(const ForwardArgs& a, int d, int b, int u, int m = 0, bool exists = true)
      : clock(a.rows, d, b, m, exists), u(u), c(0) {
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const int64_t i = element(m * 4 + q, a.rows.H, u);
      bias[q] = u < a.rows.H && a.bias_ih[d]
                    ? to_acc(at<scalar_t>(a.bias_ih[d], i)) + to_acc(at<scalar_t>(a.bias_hh[d], i))
                    : acc_t(0);
      pre[q] = 0;
    }
  }

  __device__ __forceinline__ void start(const ForwardArgs& a) {
    c = state_or_zero<scalar_t>(a.rows.c_0, a.rows.H, a.rows, clock, u);
  }

  __device__ __forceinline__ void reset(const ForwardArgs& a) {
    c = state_or_zero<scalar_t>(a.rows.reset_c, a.rows.H, a.rows, clock, u);
  }

  // Loads what nothing of the recurrence goes into, a step early, as it lies in memory: the first instruction that uses
  // a loaded value waits for it, even one that only converts it.
  __device__ __forceinline__ void prefetch(const ForwardArgs& a, const Step& step) {
    if (!clock.runs(step.t)) return;
    const auto* from = &at<acc_t>(a.pre_gates[clock.d], step.strided + element(clock.b, a.pre_gates_stride_b, u));
#pragma unroll
    for (int q = 0; q < 4; ++q) pre[q] = from[q * a.rows.H];
  }

  // A step of a row that runs, with sums = W_hh h of the four gates.
  __device__ __forceinline__ CellForward<acc_t> step(const acc_t (&sums)[4]) {
    const auto y =
        cell_forward<acc_t, ActivationMath<scalar_t>>(pre[0] + bias[0] + sums[0], pre[1] + bias[1] + sums[1],
                                                      pre[2] + bias[2] + sums[2], pre[3] + bias[3] + sums[3], c);
    c = y.c;
    return y;
  }

  // What a step came to, for training.
  __device__ __forceinline__ void store(const ForwardArgs& a, const Step& step, const CellForward<acc_t>& y) const {
    if (!a.gates) return;
    const int row = step.saved + clock.b, H = a.rows.H;
    auto* gates = &at<scalar_t>(a.gates, element(row, 4 * H, u));
    gates[0] = from_acc<scalar_t>(y.i);
    gates[H] = from_acc<scalar_t>(y.f);
    gates[2 * H] = from_acc<scalar_t>(y.g);
    gates[3 * H] = from_acc<scalar_t>(y.o);
    at<acc_t>(a.cell_states, element(row, H, u)) = y.c;
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

  ForwardHidden() = default;
  __device__ __forceinline__ ForwardHidden(RowClock clock, int r) : clock(clock), r(r), h(0) {}

  __device__ __forceinline__ void start(const ForwardArgs& a) {
    h = state_or_zero<scalar_t>(a.rows.h_0, a.rows.R, a.rows, clock, r);
  }

  __device__ __forceinline__ void reset(const ForwardArgs& a) {
    h = state_or_zero<scalar_t>(a.rows.reset_h, a.rows.R, a.rows, clock, r);
  }

  // After a step that ran, with its result.
  __device__ __forceinline__ void leave(acc_t value) { h = rounded<scalar_t>(value); }
  __device__ __forceinline__ void store(const ForwardArgs& a, const Step& step, acc_t value) const {
    const int row = (step.row + clock.b) * a.rows.D + clock.d;
    at<scalar_t>(a.output, element(row, a.rows.R, r)) = from_acc<scalar_t>(value);
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
    if (!clock.runs(step.t) || !a.d_output) return;
    const int64_t row = step.strided + int64_t{clock.b} * a.d_output_stride_b;
    d_out = at<scalar_t>(a.d_output, row + (clock.d * a.rows.R + r));
  }

  // Gradient of the h that the step computed.
  __device__ __forceinline__ acc_t total() const { return d_h + to_acc(d_out); }

  // After step t: `sum` = d_gates W_hh, if the row ran it, goes to the step before, or to reset_h.
  __device__ __forceinline__ void leave(const BackwardArgs& a, int t, acc_t sum) {
    if (clock.runs(t)) d_h = sum;
    if (is_reset(a.rows, clock, t)) {
      if (a.d_reset_h) at<acc_t>(a.d_reset_h, element(clock.state_row(a.rows), a.rows.R, r)) += d_h;
      d_h = 0;
    }
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

  BackwardUnit() = default;
  __device__ __forceinline__ BackwardUnit(const BackwardArgs& a, int d, int b, int u, int m = 0, bool exists = true)
      : clock(a.rows, d, b, m, exists), u(u), d_c(0), gate{}, c(0), c_prev(0) {}

  __device__ __forceinline__ void start(const BackwardArgs& a) {
    d_c = state_or_zero<scalar_t>(a.d_c_n, a.rows.H, a.rows, clock, u);
  }

  // Once per step, after the step that runs before it backward: it also adds the gradient of the cell state from
  // outside.
  __device__ __forceinline__ void prefetch(const BackwardArgs& a, const Step& step) {
    if (!clock.runs(step.t)) return;
    const int row = step.saved + clock.b, H = a.rows.H;
    const auto* gates = &at<scalar_t>(a.gates, element(row, 4 * H, u));
#pragma unroll
    for (int q = 0; q < 4; ++q) gate[q] = gates[q * H];
    const int64_t i = element(row, H, u);
    c = at<acc_t>(a.cell_states, i);
    if (a.d_cell_states) d_c += at<acc_t>(a.d_cell_states, i);
    if (is_reset(a.rows, clock, step.t))
      c_prev = state_or_zero<scalar_t>(a.rows.reset_c, H, a.rows, clock, u);
    else if (clock.first(step.t))
      c_prev = state_or_zero<scalar_t>(a.rows.c_0, H, a.rows, clock, u);
    else
      c_prev = at<acc_t>(
          a.cell_states,
          element(first_saved(a.rows, clock.d, clock.m) + row_of(a.rows, clock.previous(step.t), clock.b), H, u));
  }

  // A step of a row that runs, with d_h the whole gradient of o * tanh(c). Returns d_gates rounded.
  __device__ __forceinline__ void step(acc_t d_h, scalar_t (&d_gates)[4]) {
    const auto y = cell_backward<acc_t, ActivationMath<scalar_t>>(to_acc(gate[0]), to_acc(gate[1]), to_acc(gate[2]),
                                                                  to_acc(gate[3]), c, c_prev, d_h, d_c);
    d_gates[0] = from_acc<scalar_t>(y.d_i);
    d_gates[1] = from_acc<scalar_t>(y.d_f);
    d_gates[2] = from_acc<scalar_t>(y.d_g);
    d_gates[3] = from_acc<scalar_t>(y.d_o);
    d_c = y.d_c_prev;
  }

  __device__ __forceinline__ void store(const BackwardArgs& a, const Step& step, const scalar_t (&d_gates)[4]) const {
    const int H = a.rows.H;
    auto* to = &at<scalar_t>(a.d_gates, element(step.saved + clock.b, 4 * H, u));
#pragma unroll
    for (int q = 0; q < 4; ++q) to[q * H] = d_gates[q];
  }

  // After step t, whether the row ran it or not: what a reset before it cuts off goes to reset_c.
  __device__ __forceinline__ void leave(const BackwardArgs& a, int t) {
    if (!is_reset(a.rows, clock, t)) return;
    if (a.d_reset_c) at<acc_t>(a.d_reset_c, element(clock.state_row(a.rows), a.rows.H, u)) += d_c;
    d_c = 0;
  }

  __device__ __forceinline__ void finish(const BackwardArgs& a) const {
    at<scalar_t>(a.d_c_0, element(clock.state_row(a.rows), a.rows.H, u)) = from_acc<scalar_t>(d_c);
  }
};

}  // namespace fusedlstm::gpu
