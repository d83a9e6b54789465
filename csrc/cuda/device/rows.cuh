// Rows of the batch in time, and what a cell computes with: what both passes of resident and STREAM kernels have in
// common.
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
  static constexpr float kLog2E = 1.44269504f;
  // Off by less than 2^-22.
  static __device__ __forceinline__ float sigmoid(float x) { return reciprocal_fast(1.0f + exp2_fast(-kLog2E * x)); }
  // 1 - 2 / (1 + exp(2 |x|)), whose error is one of 1; near zero x + x^3 p(x^2) instead, with the p of degree 3 that
  // comes closest, within 2^-23.5 of the result. Within 4 ulp altogether. Both are computed, so that there is no
  // branch.
  static __device__ __forceinline__ float tanh(float x) {
    const float size = fabsf(x), square = x * x;
    const float far = 1.0f - 2.0f * reciprocal_fast(1.0f + exp2_fast(2 * kLog2E * size));
    const float p = ((0.015612701f * square - 0.0522118472f) * square + 0.133131176f) * square - 0.333325982f;
    return size < 0.6f ? x + x * (square * p) : copysignf(far, x);
  }
  static __device__ __forceinline__ float accurate_tanh(float x) { return tanh(x); }
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

// Element u of state i that a launch starts from: the one given to the layer, or the one at the border. is_first: to
// run, of the parts of the steps.
template <class scalar_t>
__device__ __forceinline__ AccOf<scalar_t> started_from(const LayerArgs& a, bool is_first, const void* const* given,
                                                        int i, int size, const RowClock& clock, int u) {
  return is_first ? state_or_zero<scalar_t>(given[i], size, a.rows, clock, u)
                  : state_or_zero<AccOf<scalar_t>>(a.border[i], size, a.rows, clock, u);
}
// Leaves it likewise.
template <class scalar_t>
__device__ __forceinline__ void leave_state(const LayerArgs& a, bool is_last, void* const* results, int i, int size,
                                            const RowClock& clock, int u, AccOf<scalar_t> x) {
  const int64_t place = element(clock.state_row(a.rows), size, u);
  if (is_last)
    at<scalar_t>(results[i], place) = from_acc<scalar_t>(x);
  else
    at<AccOf<scalar_t>>(a.border[i], place) = x;
}

// Whether the launch runs the first steps in time, and the last.
__device__ __forceinline__ bool has_first_step(const RowStates& rows) {
  return rows.begin == 0;
}
__device__ __forceinline__ bool has_last_step(const RowStates& rows) {
  return rows.end == rows.T;
}

}  // namespace fusedlstm::cuda
