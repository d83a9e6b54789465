// What the resident kernel does between two products, for one hidden unit of one batch row: forward and backward.
//
// Both walk positions s = 0..steps-1, each with one product of the operand published for it:
//   forward:  operand s is the h that step s starts from; `advance` runs step s with the product's sums;
//   backward: operand s is the d_from_hidden of the s-th step from the end; `advance` takes the product as the gradient
//             of the h before it and computes the d_from_hidden of step s + 1; those of operand 0 at a position -1,
//             which has no product.
// So at position s the step that is run `now` is number s + kLead in the order of running.
//
// A position in time: `ready` makes of the values fetched for the step what no product goes into, and `prefetch`
// fetches those of the next one, before or after the product, to have a whole position to come in; forward, `ask_l2`
// has those of one later brought into L2. Then `advance` runs the step, without branches: the chains of activations of
// a thread's cells overlap only within one block of instructions. Where the batch has resets, `enter` applies that
// before the next step. Then the operand is published, and last `store` writes what the step came to, and `store_rest`
// what only some calls need: others wait for the operand, and nobody waits for these.
#pragma once
#include "backward_unit.cuh"
#include "forward_unit.cuh"

namespace fusedlstm::cuda {

// Equations: a type of csrc/cells.
template <class scalar_type, class Equations>
struct ForwardCell {
  using scalar_t = scalar_type;
  using Args = ForwardArgs;
  static constexpr Pass kPass = Pass::kForward;
  static constexpr int kLead = 0;
  using Unit = ForwardUnit<scalar_t, Equations>;
  Unit unit;
  ForwardHidden<scalar_t> hidden;
  uint8_t reset;  // before the step to come, as it lies in memory

  using OfUnit = Bias<scalar_t, Equations>;  // what the cells of a unit share
  using Ready = typename Unit::Known;        // with the sums to which the product is added
  using Result = typename Unit::After;

  ForwardCell() = default;
  __device__ __forceinline__ ForwardCell(const Args& a, int d, int b, int u, int m, bool exists)
      : unit(a, d, b, u, m, exists), hidden(a, unit.clock, u), reset(0) {}

  // Finds its data again from those of `first`, a cell of the same unit so many batch rows before it. Between two calls
  // no register is kept for where they are.
  __device__ __forceinline__ void follow(const Args& a, const ForwardCell& first, int rows) {
    rows = in_register(rows);
    unit.follow(a, first.unit, rows);
    hidden.follow(a, first.hidden, rows);
  }
  // The time of step p in the order of running.
  static __device__ __forceinline__ int time(int d, int p, int steps) { return time_of(d, p, steps); }

  // now, next: the first steps to run.
  __device__ __forceinline__ void start(const Args& a, const Step& now, const Step& next) {
    if (unit.clock.exists()) {
      unit.start(a);
      hidden.start(a);
    }
    prefetch(a, now, next);
    prefetch_reset(a, now);
    enter(a);
  }
  __device__ __forceinline__ void prefetch(const Args& a, const Step& step, const Step&) { unit.prefetch(a, step); }
  __device__ __forceinline__ void ask_l2(const Args& a, const Step& step) const { unit.ask_l2(a, step); }
  __device__ __forceinline__ void prefetch_reset(const Args& a, const Step& step) {
    reset = reset_flag(a.rows, unit.clock, step.t);
  }
  __device__ __forceinline__ Ready ready(const Args&, const Step&, const OfUnit& bias) {
    Ready ready = unit.known(bias);  // all before `prefetch` takes its place
#pragma unroll
    for (int q = 0; q < Equations::kSizes.gates; ++q) ready.sums[q] = in_register(ready.sums[q]);
#pragma unroll
    for (int q = 0; q < Equations::kSizes.apart(); ++q) ready.from_input[q] = in_register(ready.from_input[q]);
    return ready;
  }
  __device__ __forceinline__ Result advance(const Args& a, int, const Step& now, const Ready& ready) {
    const Result result = unit.step(a, now.t, ready, hidden.h);
    hidden.leave(now.t, result.h);
    return result;
  }
  __device__ __forceinline__ bool enters() const { return reset; }
  __device__ __forceinline__ void enter(const Args& a) {
    if (!reset) return;
    unit.reset(a);
    hidden.reset(a);
  }
  __device__ __forceinline__ scalar_t operand(int, const Result&) const { return from_acc<scalar_t>(hidden.h); }
  static __device__ __forceinline__ int64_t first_element(const Args& a, const Step& step) {
    return ForwardHidden<scalar_t>::first_element(a, step);
  }
  __device__ __forceinline__ void store(const Args&, const Step& step, int64_t first, const Result& result) const {
    hidden.store(step, first, result.h);
  }
  // For training.
  static __device__ __forceinline__ bool has_rest(const Args& a) { return Unit::saves(a); }
  __device__ __forceinline__ void store_rest(const Args& a, const Step& step, const Result& result) const {
    unit.save(a, step, result);
  }
  __device__ __forceinline__ void finish(const Args& a) const {
    if (!unit.clock.exists()) return;
    unit.finish(a);
    hidden.finish(a);
  }
};

template <class scalar_type, class Equations>
struct BackwardCell {
  using scalar_t = scalar_type;
  using Args = BackwardArgs;
  static constexpr Pass kPass = Pass::kBackward;
  static constexpr int kLead = 1;
  static constexpr int kCarried = Equations::kSizes.carried;
  using Unit = BackwardUnit<scalar_t, Equations>;
  Unit unit;
  BackwardHidden<scalar_t, Equations> hidden;
  uint8_t reset;             // before the step to come, as it lies in memory
  bool is_reset, was_reset;  // before the step run now, and before the one run last

  struct OfUnit {
    OfUnit() = default;
    __device__ __forceinline__ OfUnit(const Args&, int, int, int) {}
  };
  struct Ready {
    float sums[1];
    typename Unit::Slopes slopes;
    float d_out, d_from_outside[at_least_one(kCarried)];
  };
  struct Result {
    typename Unit::Gradients gradients;
    float d_reset_h, d_reset_carried[at_least_one(kCarried)];  // where was_reset and is_reset
  };

  BackwardCell() = default;
  __device__ __forceinline__ BackwardCell(const Args& a, int d, int b, int u, int m, bool exists)
      : unit(a, d, b, u, m, exists), hidden(unit.clock, u), reset(0), is_reset(false), was_reset(false) {}

  static __device__ __forceinline__ int time(int d, int p, int steps) { return time_of(d, steps - 1 - p, steps); }

  __device__ __forceinline__ void start(const Args& a, const Step& now, const Step& next) {
    if (unit.clock.exists()) {
      unit.start(a);
      hidden.start(a);
    }
    prefetch(a, now, next);
    prefetch_reset(a, now);
  }
  __device__ __forceinline__ void prefetch(const Args& a, const Step& step, const Step& next) {
    unit.prefetch(a, step, next);
    hidden.prefetch(a, step);
  }
  __device__ __forceinline__ void prefetch_reset(const Args& a, const Step& step) {
    reset = reset_flag(a.rows, unit.clock, step.t);
  }
  __device__ __forceinline__ Ready ready(const Args& a, const Step& now, const OfUnit&) {
    was_reset = is_reset;
    is_reset = reset != 0;
    if (is_reset || unit.clock.first(now.t)) unit.enter(a, is_reset);
    Ready ready{{0}, unit.slopes(a), to_acc(hidden.d_out), {}};
    // All before `prefetch` takes the place of what they are made of.
    ready.slopes.each([](float& slope) { slope = in_register(slope); });
    ready.d_out = in_register(ready.d_out);
#pragma unroll
    for (int k = 0; k < kCarried; ++k) ready.d_from_outside[k] = in_register(unit.d_from_outside[k]);
    return ready;
  }
  // before: the time of the step before `now` in the order of running.
  __device__ __forceinline__ Result advance(const Args& a, int before, const Step& now, const Ready& ready) {
    hidden.leave(before, ready.sums[0]);
    Result result;
    result.d_reset_h = hidden.cut(was_reset);
    const float direct =
        unit.step(a, now.t, ready.slopes, hidden.d_h + ready.d_out, ready.d_from_outside, result.gradients);
    hidden.keep(now.t, direct);
#pragma unroll
    for (int k = 0; k < kCarried; ++k) result.d_reset_carried[k] = unit.cut(k, is_reset);
    return result;
  }
  // The states that the step starts from are no matter of the operand.
  __device__ __forceinline__ bool enters() const { return false; }
  __device__ __forceinline__ void enter(const Args&) {}
  __device__ __forceinline__ scalar_t operand(int q, const Result& result) const {
    return result.gradients.from_hidden[q];
  }
  static __device__ __forceinline__ int64_t first_element(const Args& a, const Step& step) {
    return Unit::first_element(a, step);
  }
  __device__ __forceinline__ void store(const Args& a, const Step& step, int64_t first, const Result& result) const {
    unit.store(a, step, first, result.gradients);
  }
  static __device__ __forceinline__ bool has_rest(const Args& a) { return a.rows.reset; }
  __device__ __forceinline__ void store_rest(const Args& a, const Step&, const Result& result) const {
    if (was_reset) hidden.store_cut(a, result.d_reset_h);
    if (!is_reset) return;
#pragma unroll
    for (int k = 0; k < kCarried; ++k) unit.store_cut(a, k, result.d_reset_carried[k]);
  }
  __device__ __forceinline__ void finish(const Args& a) const {
    if (!unit.clock.exists()) return;
    unit.finish(a);
    hidden.finish(a);
  }
};

}  // namespace fusedlstm::cuda
