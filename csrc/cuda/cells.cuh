// What the resident kernel does between two products, for one hidden unit of one batch row: forward and backward.
//
// Level 2. Both walk positions s = 0..steps-1, each with one product of the operand published for it:
//   forward:  operand s is the h that step s starts from; `advance(s)` runs step s with the product's sums;
//   backward: operand s is the d_gates of the s-th step from the end; `advance(s)` takes the product as the gradient
//             of the h before it and computes the next d_gates, `start` the first ones.
// `store(s)` then writes what `advance(s)`, or `start` as position -1, came to: the others wait for the operand, and
// nobody waits for this. What it writes is no member, since members take registers during the product.
#pragma once
#include "rows.cuh"

namespace fusedlstm::gpu {

template <class scalar_type>
struct ForwardCell {
  using scalar_t = scalar_type;
  using Args = ForwardArgs;
  static constexpr Pass kPass = Pass::kForward;
  static constexpr int kSums = 4;      // of the product, per unit
  static constexpr int kOperands = 1;  // published per unit and position
  ForwardUnit<scalar_t> unit;
  ForwardHidden<scalar_t> hidden;
  int steps;
  using Result = CellForward<float>;

  ForwardCell() = default;
  __device__ __forceinline__ ForwardCell(const Args& a, int d, int b, int u, int m, int steps)
      : unit(a, d, b, u, m), hidden(unit.clock, u), steps(steps) {}

  __device__ __forceinline__ int time(int s) const { return time_of(unit.clock.d, s, steps); }

  __device__ __forceinline__ void start(const Args& a) {
    unit.start(a);
    hidden.start(a);
    enter(a, 0);
    prefetch(a, 0);
  }
  // Loads what advance(s) needs beside the sums.
  __device__ __forceinline__ void prefetch(const Args& a, int s) {
    if (s < steps) unit.prefetch(a, time(s));
  }
  __device__ __forceinline__ Result advance(const Args& a, int s, const float (&sums)[kSums]) {
    Result result{};
    if (unit.clock.runs(time(s))) {
      result = unit.step(sums);
      hidden.leave(result.h);
    }
    enter(a, s + 1);
    return result;
  }
  __device__ __forceinline__ void store(const Args& a, int s, const Result& result) const {
    if (s < 0 || !unit.clock.runs(time(s))) return;
    unit.store(a, time(s), result);
    hidden.store(a, time(s), result.h);
  }
  __device__ __forceinline__ scalar_t operand(int) const { return from_acc<scalar_t>(hidden.h); }
  __device__ __forceinline__ void finish(const Args& a) const {
    unit.finish(a);
    hidden.finish(a);
  }

 private:
  __device__ __forceinline__ void enter(const Args& a, int s) {
    if (s >= steps || !is_reset(a.rows, unit.clock, time(s))) return;
    unit.reset(a);
    hidden.reset(a);
  }
};

template <class scalar_type>
struct BackwardCell {
  using scalar_t = scalar_type;
  using Args = BackwardArgs;
  static constexpr Pass kPass = Pass::kBackward;
  static constexpr int kSums = 1;
  static constexpr int kOperands = 4;
  BackwardUnit<scalar_t> unit;
  BackwardHidden<scalar_t> hidden;
  int steps;
  scalar_t d_gates[4];
  struct Result {};  // that is d_gates

  BackwardCell() = default;
  __device__ __forceinline__ BackwardCell(const Args& a, int d, int b, int u, int m, int steps)
      : unit(a, d, b, u, m), hidden(unit.clock, u), steps(steps), d_gates{} {}

  __device__ __forceinline__ int time(int s) const { return time_of(unit.clock.d, steps - 1 - s, steps); }

  __device__ __forceinline__ void start(const Args& a) {
    unit.start(a);
    hidden.start(a);
    prefetch(a, -1);
    step(a, 0);
    prefetch(a, 0);
  }
  __device__ __forceinline__ void prefetch(const Args& a, int s) {
    if (s + 1 >= steps) return;
    unit.prefetch(a, time(s + 1));
    hidden.prefetch(a, time(s + 1));
  }
  __device__ __forceinline__ Result advance(const Args& a, int s, const float (&sums)[kSums]) {
    hidden.leave(a, time(s), sums[0]);
    step(a, s + 1);
    return {};
  }
  __device__ __forceinline__ void store(const Args& a, int s, Result) const {
    if (s + 1 < steps && unit.clock.runs(time(s + 1))) unit.store(a, time(s + 1), d_gates);
  }
  __device__ __forceinline__ scalar_t operand(int q) const { return d_gates[q]; }
  __device__ __forceinline__ void finish(const Args& a) const {
    unit.finish(a);
    hidden.finish(a);
  }

 private:
  // A row that does not run sends zeros.
  __device__ __forceinline__ void step(const Args& a, int s) {
    if (s >= steps) return;
#pragma unroll
    for (int q = 0; q < 4; ++q) d_gates[q] = scalar_t{};
    const int t = time(s);
    if (unit.clock.runs(t)) unit.step(hidden.total(), d_gates);
    unit.leave(a, t);
  }
};

}  // namespace fusedlstm::gpu
