// What the resident kernel does between two products, for one hidden unit of one batch row: forward and backward.
//
// Level 2. Both walk positions s = 0..steps-1, each with one product of the operand published for it:
//   forward:  operand s is the h that step s starts from; `advance` runs step s with the product's sums;
//   backward: operand s is the d_gates of the s-th step from the end; `advance` takes the product as the gradient of
//             the h before it and computes the d_gates of step s + 1, `start` the first ones.
// So at position s the step that is run `now` is number s + kLead in the order of running.
// `store` then writes what `advance`, or `start`, came to: the others wait for the operand, and nobody waits for this.
// What it writes is no member, since members take registers during the product.
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
  static constexpr int kLead = 0;
  ForwardUnit<scalar_t> unit;
  ForwardHidden<scalar_t> hidden;
  using Result = CellForward<float>;

  ForwardCell() = default;
  __device__ __forceinline__ ForwardCell(const Args& a, int d, int b, int u, int m, bool exists)
      : unit(a, d, b, u, m, exists), hidden(unit.clock, u) {}

  // The time of step p in the order of running.
  static __device__ __forceinline__ int time(int d, int p, int steps) { return time_of(d, p, steps); }

  // before, now: the steps around the beginning of position 0.
  __device__ __forceinline__ void start(const Args& a, const Step&, const Step& now) {
    if (!unit.clock.exists()) return;
    unit.start(a);
    hidden.start(a);
    enter(a, now.t);
    prefetch(a, now);
  }
  // Loads what advance() needs beside the sums to run `step`.
  __device__ __forceinline__ void prefetch(const Args& a, const Step& step) { unit.prefetch(a, step); }
  // before: the time of the step before `now`. The result is written if the row runs the step, as then it is stored.
  __device__ __forceinline__ void advance(const Args& a, int, const Step& now, const Step& next,
                                          const float (&sums)[kSums], Result& result) {
    if (unit.clock.runs(now.t)) {
      result = unit.step(sums);
      hidden.leave(result.h);
    }
    enter(a, next.t);
  }
  __device__ __forceinline__ void store(const Args& a, const Step& step, const Result& result) const {
    if (!unit.clock.runs(step.t)) return;
    unit.store(a, step, result);
    hidden.store(a, step, result.h);
  }
  __device__ __forceinline__ scalar_t operand(int) const { return from_acc<scalar_t>(hidden.h); }
  __device__ __forceinline__ void finish(const Args& a) const {
    if (!unit.clock.exists()) return;
    unit.finish(a);
    hidden.finish(a);
  }

 private:
  __device__ __forceinline__ void enter(const Args& a, int t) {
    if (!is_reset(a.rows, unit.clock, t)) return;
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
  static constexpr int kLead = 1;
  BackwardUnit<scalar_t> unit;
  BackwardHidden<scalar_t> hidden;
  scalar_t d_gates[4];
  struct Result {};  // that is d_gates

  BackwardCell() = default;
  __device__ __forceinline__ BackwardCell(const Args& a, int d, int b, int u, int m, bool exists)
      : unit(a, d, b, u, m, exists), hidden(unit.clock, u), d_gates{} {}

  static __device__ __forceinline__ int time(int d, int p, int steps) { return time_of(d, steps - 1 - p, steps); }

  __device__ __forceinline__ void start(const Args& a, const Step& before, const Step& now) {
    if (!unit.clock.exists()) return;
    unit.start(a);
    hidden.start(a);
    prefetch(a, before);
    step(a, before);
    prefetch(a, now);
  }
  __device__ __forceinline__ void prefetch(const Args& a, const Step& step) {
    unit.prefetch(a, step);
    hidden.prefetch(a, step);
  }
  __device__ __forceinline__ void advance(const Args& a, int before, const Step& now, const Step&,
                                          const float (&sums)[kSums], Result&) {
    hidden.leave(a, before, sums[0]);
    step(a, now);
  }
  __device__ __forceinline__ void store(const Args& a, const Step& step, const Result&) const {
    if (unit.clock.runs(step.t)) unit.store(a, step, d_gates);
  }
  __device__ __forceinline__ scalar_t operand(int q) const { return d_gates[q]; }
  __device__ __forceinline__ void finish(const Args& a) const {
    if (!unit.clock.exists()) return;
    unit.finish(a);
    hidden.finish(a);
  }

 private:
  // A row that does not run sends zeros.
  __device__ __forceinline__ void step(const Args& a, const Step& step) {
#pragma unroll
    for (int q = 0; q < 4; ++q) d_gates[q] = scalar_t{};
    if (unit.clock.runs(step.t)) unit.step(hidden.total(), d_gates);
    unit.leave(a, step.t);
  }
};

}  // namespace fusedlstm::gpu
