// What the resident kernel does between two products, for one hidden unit of one batch row: forward and backward.
//
// Both walk positions s = 0..steps-1, each with one product of the operand published for it:
//   forward:  operand s is the h that step s starts from; `advance` runs step s with the product's sums;
//   backward: operand s is the d_gates of the s-th step from the end; `advance` takes the product as the gradient of
//             the h before it and computes the d_gates of step s + 1, `start` the first ones.
// So at position s the step that is run `now` is number s + kLead in the order of running.
//
// A position in time: `ready` makes of the values fetched for the step what no product goes into, and `prefetch`
// fetches those of the next one, before or after the product, to have a whole position to come in. Then `advance`
// runs the step, without branches: the chains of activations of a thread's cells overlap only within one block of
// instructions. Where the batch has resets, `enter` applies that before the next step. Then the operand is published,
// and last `store` writes what the step came to, and `store_rest` what only some calls need: others wait for the
// operand, and nobody waits for these.
#pragma once
#include "rows.cuh"

namespace fusedlstm::cuda {

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
  uint8_t reset;  // before the step to come, as it lies in memory

  using Shared = Bias<scalar_t>;  // by the cells of a unit
  struct Ready {
    float sums[kSums];  // to which the product is added
  };
  using Result = CellForward<float>;

  ForwardCell() = default;
  __device__ __forceinline__ ForwardCell(const Args& a, int d, int b, int u, int m, bool exists)
      : unit(a, d, b, u, m, exists), hidden(a, unit.clock, u), reset(0) {}

  // The time of step p in the order of running.
  static __device__ __forceinline__ int time(int d, int p, int steps) { return time_of(d, p, steps); }

  // before, now, next: the steps around the beginning of position 0.
  __device__ __forceinline__ Result start(const Args& a, const Step&, const Step& now, const Step& next) {
    if (unit.clock.exists()) {
      unit.start(a);
      hidden.start(a);
    }
    prefetch(a, now, next);
    prefetch_reset(a, now);
    enter(a);
    return {};
  }
  __device__ __forceinline__ void prefetch(const Args& a, const Step& step, const Step&) { unit.prefetch(a, step); }
  __device__ __forceinline__ void prefetch_reset(const Args& a, const Step& step) {
    reset = reset_flag(a.rows, unit.clock, step.t);
  }
  __device__ __forceinline__ Ready ready(const Args&, const Step&, const Shared& bias) {
    Ready ready;
    unit.known_sums(bias, ready.sums);
#pragma unroll
    for (int q = 0; q < kSums; ++q) ready.sums[q] = in_register(ready.sums[q]);  // before `prefetch` takes its place
    return ready;
  }
  __device__ __forceinline__ Result advance(int, const Step& now, const Ready& ready) {
    const Result result = unit.step(now.t, ready.sums);
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
  static __device__ __forceinline__ bool has_rest(const Args& a) { return a.gates; }
  __device__ __forceinline__ void store_rest(const Args& a, const Step& step, const Result& result) const {
    unit.save(a, step, result);
  }
  __device__ __forceinline__ void finish(const Args& a) const {
    if (!unit.clock.exists()) return;
    unit.finish(a);
    hidden.finish(a);
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
  uint8_t reset;             // before the step to come, as it lies in memory
  bool is_reset, was_reset;  // before the step run now, and before the one run last

  struct Shared {
    Shared() = default;
    __device__ __forceinline__ Shared(const Args&, int, int, int) {}
  };
  struct Ready {
    float sums[kSums];
    CellSlopes<float> slopes;
    float d_out, d_cell_state;
  };
  struct Result {
    scalar_t d_gates[kOperands];
    float d_reset_h, d_reset_c;  // where was_reset and is_reset
  };

  BackwardCell() = default;
  __device__ __forceinline__ BackwardCell(const Args& a, int d, int b, int u, int m, bool exists)
      : unit(a, d, b, u, m, exists), hidden(unit.clock, u), reset(0), is_reset(false), was_reset(false) {}

  static __device__ __forceinline__ int time(int d, int p, int steps) { return time_of(d, steps - 1 - p, steps); }

  __device__ __forceinline__ Result start(const Args& a, const Step& before, const Step& now, const Step& next) {
    if (unit.clock.exists()) {
      unit.start(a);
      hidden.start(a);
    }
    prefetch(a, before, now);
    prefetch_reset(a, before);
    const Result result = step(before, ready(a, before, {}));
    prefetch(a, now, next);
    prefetch_reset(a, now);
    return result;
  }
  __device__ __forceinline__ void prefetch(const Args& a, const Step& step, const Step& next) {
    unit.prefetch(a, step, next);
    hidden.prefetch(a, step);
  }
  __device__ __forceinline__ void prefetch_reset(const Args& a, const Step& step) {
    reset = reset_flag(a.rows, unit.clock, step.t);
  }
  __device__ __forceinline__ Ready ready(const Args& a, const Step& now, const Shared&) {
    was_reset = is_reset;
    is_reset = reset != 0;
    if (is_reset || unit.clock.first(now.t)) unit.enter(a, is_reset);
    Ready ready{{0}, unit.slopes(), to_acc(hidden.d_out), unit.d_cell_state};
    auto& slopes = ready.slopes;  // all before `prefetch` takes the place of what they are made of
    for (float* x : {&slopes.c_i, &slopes.c_f, &slopes.c_g, &slopes.c_c_prev, &slopes.h_o, &slopes.h_c, &ready.d_out,
                     &ready.d_cell_state})
      *x = in_register(*x);
    return ready;
  }
  // before: the time of the step before `now` in the order of running.
  __device__ __forceinline__ Result advance(int before, const Step& now, const Ready& ready) {
    hidden.leave(before, ready.sums[0]);
    return step(now, ready);
  }
  // The c that the step starts from is no matter of the operand.
  __device__ __forceinline__ bool enters() const { return false; }
  __device__ __forceinline__ void enter(const Args&) {}
  __device__ __forceinline__ scalar_t operand(int q, const Result& result) const { return result.d_gates[q]; }
  static __device__ __forceinline__ int64_t first_element(const Args& a, const Step& step) {
    return BackwardUnit<scalar_t>::first_element(a, step);
  }
  __device__ __forceinline__ void store(const Args& a, const Step& step, int64_t first, const Result& result) const {
    unit.store(a, step, first, result.d_gates);
  }
  static __device__ __forceinline__ bool has_rest(const Args& a) { return a.rows.reset; }
  __device__ __forceinline__ void store_rest(const Args& a, const Step&, const Result& result) const {
    if (was_reset) hidden.store_cut(a, result.d_reset_h);
    if (is_reset) unit.store_cut(a, result.d_reset_c);
  }
  __device__ __forceinline__ void finish(const Args& a) const {
    if (!unit.clock.exists()) return;
    unit.finish(a);
    hidden.finish(a);
  }

 private:
  __device__ __forceinline__ Result step(const Step& step, const Ready& ready) {
    Result result;
    result.d_reset_h = hidden.cut(was_reset);
    unit.step(step.t, ready.slopes, hidden.d_h + ready.d_out, ready.d_cell_state, result.d_gates);
    result.d_reset_c = unit.cut(is_reset);
    return result;
  }
};

}  // namespace fusedlstm::cuda
