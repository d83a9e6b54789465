// The forward recurrence of a layer with variants: dropout and zoneout of states, layer norm, peepholes.
#pragma once

#include "chunk.h"
#include "straight.h"
#include "varied_rows.h"

namespace fusedlstm::cpu {

template <class K, class Cell>
class VariedForward : VariedRows<K, Cell> {
  using Base = VariedRows<K, Cell>;
  using Base::index, Base::plan, Base::cell, Base::steps, Base::batch, Base::hidden, Base::gates, Base::width;
  using Base::kSizes, Base::shape, Base::some, Base::some_of;

 public:
  using V = typename K::V;
  using acc = typename K::acc;

  VariedForward(const VariedForwardArgs& args, const Cell& cell, const Plan& plan)
      : Base(args, args, cell, plan),
        a(args),
        chunk(steps_of_chunk(steps, chunks_of(steps, rows_of_group(plan, shape), gates * int64_t(sizeof(acc))))),
        weight_ih(gates, shape.input, chunk * rows_of_group(plan, shape), reading(steps <= chunk)),
        weight_hh(gates, hidden, rows_of_group(plan, shape), reading(steps == 1)) {}

  int64_t workspace_bytes() {
    Arena arena{nullptr};
    lay_out(arena, 0);
    return arena.used;
  }

  void run(Share& share, char* memory) {
    Arena arena{memory};
    lay_out(arena, share.first);
    weight_ih.prepare(share, a.weights[0].ih);
    weight_hh.prepare(share, a.weights[0].hh);
    const Range rows = share.of(batch);
    for (int64_t b = rows.begin; b < rows.end; ++b) start(b);
    share.meet();
    for_each_task(plan, shape, share, [&](const Task& task) { run_steps(task); });
  }

 private:
  const VariedForwardArgs& a;
  const int64_t chunk;  // steps whose input parts are there at once
  Straight<K> weight_ih, weight_hh;
  // Shared by the team. Input parts of the gates' sums, [chunk][B] rows. [B] rows: hidden parts; states, and what h
  // enters the product as, where that is masked; c as h sees it, where that is normalised.
  acc *input_parts, *sums, *states[kMaxStates], *masked, *seen_rows;
  const acc** input_rows;  // of this share: where the input's rows of a chunk are

  // is_one_product: of a group of rows, each of which would pack the weight.
  typename Straight<K>::Reading reading(bool is_one_product) const {
    return Straight<K>::reading_of(plan, is_one_product && row_groups(plan, shape) == 1);
  }

  FUSEDLSTM_NOINLINE void lay_out(Arena& arena, int64_t share) {
    weight_ih.lay_out(arena, plan.threads, share);
    weight_hh.lay_out(arena, plan.threads, share);
    input_parts = arena.take<acc>(chunk * batch * weight_ih.width);
    const int64_t own_rows = chunk * rows_of_group(plan, shape);
    input_rows = arena.take<const acc*>(plan.threads * own_rows) + share * own_rows;
    sums = arena.take<acc>(batch * weight_hh.width);
    for (int k = 0; k < kSizes.states; ++k) states[k] = arena.take<acc>(batch * width);
    masked = arena.take<acc>(a.mask.data ? batch * width : 0);
    seen_rows = arena.take<acc>(a.parameters.gain_c ? batch * width : 0);
  }

  void start(int64_t b) {
    for (int k = 0; k < kSizes.states; ++k)
      Base::copy(states[k] + b * width, state_row<acc>(a.initial[k], 0, b), hidden);
    enter(0, b);
  }

  void run_steps(const Task& task) {
    for (int64_t s = 0; s < steps; ++s) {
      if (s % chunk == 0) multiply_input(task, s);
      multiply_hidden(task);
      task.meet();
      Base::for_each_row(task, [&](int64_t b) {
        row(s, b, input_part(task.rows, s, b));
        enter(s + 1, b);
      });
      task.meet();
    }
    Base::for_each_row(task, [&](int64_t b) {
      for (int k = 0; k < kSizes.states; ++k)
        Base::copy(static_cast<acc*>(a.last[k]) + b * hidden, states[k] + b * width, hidden);
    });
  }

  // The states that scan position s begins with.
  FUSEDLSTM_NOINLINE void enter(int64_t s, int64_t b) {
    if (s >= steps) return;
    const int64_t t = Base::step(s);
    if (index.reset(t, b))
      for (int k = 0; k < kSizes.states; ++k)
        Base::copy(states[k] + b * width, state_row<acc>(a.reset_state[k], 0, b), hidden);
    if (const acc* mask = Base::row_of(a.mask, t, b)) {
      acc* entered = Base::at(a.kept.entered, t * batch + b, hidden);
      for (int64_t u = 0; u < hidden; u += K::kLanes) {
        const V h = some(states[0] + b * width + u, hidden - u) * some(mask + u, hidden - u);
        store(masked + b * width + u, h);
        if (entered) store_some(entered + u, h, hidden - u);
      }
    }
  }

  // The input parts of the chunk of steps that begins with s. Nobody reads those of the one before any more.
  FUSEDLSTM_NOINLINE void multiply_input(const Task& task, int64_t s) {
    const int64_t end = s + chunk < steps ? s + chunk : steps;
    int64_t count = 0;
    for (int64_t at = s; at < end; ++at)
      for (int64_t b = task.rows.begin; b < task.rows.end; ++b)
        input_rows[count++] = index.template data_row<acc>(a.input, Base::step(at), b);
    weight_ih.multiply(input_part(task.rows, s, task.rows.begin), task.of(weight_ih.panels), count,
                       input_stretch(shape.input), [&](int64_t r) FUSEDLSTM_LAMBDA { return input_rows[r]; });
  }
  // Of row b at scan position s; the group of rows that it is among has its chunk to itself.
  acc* input_part(Range group, int64_t s, int64_t b) const {
    const int64_t row = chunk * group.begin + s % chunk * (group.end - group.begin) + b - group.begin;
    return input_parts + row * weight_ih.width;
  }

  FUSEDLSTM_NOINLINE void multiply_hidden(const Task& task) {
    const acc* from = (a.mask.data ? masked : states[0]) + task.rows.begin * width;
    weight_hh.multiply(sums + task.rows.begin * weight_hh.width, task.of(weight_hh.panels),
                       task.rows.end - task.rows.begin, hidden_stretch(kSizes.gates),
                       [&](int64_t r) FUSEDLSTM_LAMBDA { return from + r * width; });
  }

  // Where a row of a step is.
  struct Row {
    const acc* x;
    typename Base::Zone zoneout[kMaxStates];
    acc *p, *output, *saved, *before[kMaxStates], *h, *c;
  };

  // x: its input part, which is its own.
  FUSEDLSTM_NOINLINE void row(int64_t s, int64_t b, acc* x) {
    const int64_t t = Base::step(s), i = t * batch + b;
    Row row{};
    row.x = x;
    row.p = sums + b * weight_hh.width;
    row.output = Base::at(a.output, i, hidden);
    row.saved = Base::at(a.kept.saved, i, Cell::kSaved * hidden);
    row.h = states[0] + b * width;
    row.c = kSizes.carried > 0 ? states[kSizes.states - 1] + b * width : nullptr;
    for (int k = 0; k < kSizes.states; ++k) {
      row.zoneout[k] = Base::zone(k, t, b);
      row.before[k] = Base::at(a.kept.before[k], i, hidden);
    }
    acc *normed_ih = Base::at(a.kept.normed_ih, i, gates), *normed = Base::at(a.kept.normed, i, gates);
    acc* scales = Base::at(a.kept.scales, i, kVariedScales);
    if (scales) Base::copy(scales, nullptr, kVariedScales);
    if (!index.active(t, b)) return clear(row, normed_ih, normed);
    if (a.parameters.gain_ih) {
      const auto norm = RowNorm<K>::apply(x, gates, a.eps, normed_ih);
      if (scales) scales[kScaleIh] = norm.scale;
    }
    if (a.parameters.gain) {
      if constexpr (Cell::kNormsBoth)
        for (int64_t u = 0; u < gates; u += K::kLanes)
          store_some(row.p + u, some(row.p + u, gates - u) + some(row.x + u, gates - u), gates - u);
      const auto norm = RowNorm<K>::apply(row.p, gates, a.eps, normed);
      if (scales) scales[kScale] = norm.scale;
    }
    if (kSizes.carried > 0 && a.parameters.gain_c) return finish_normed(row, seen_rows + b * width, scales);
    Base::for_each_vector(hidden, [&](int64_t u, int64_t n) FUSEDLSTM_LAMBDA {
      auto begun = begin(row, u, n);
      end(row, u, n, begun.saved, begun.h, begun.carried[0]);
    });
  }

  // What a row that does not run leaves: zeros.
  FUSEDLSTM_NOINLINE void clear(const Row& row, acc* normed_ih, acc* normed) const {
    Base::copy(row.output, nullptr, hidden);
    if (normed_ih) Base::copy(normed_ih, nullptr, gates);
    if (normed) Base::copy(normed, nullptr, gates);
    if (!row.saved) return;
    Base::copy(row.saved, nullptr, Cell::kSaved * hidden);
    for (int k = 0; k < kSizes.states; ++k) Base::copy(row.before[k], nullptr, hidden);
  }

  // c of all units first, which are normalised together.
  FUSEDLSTM_NOINLINE void finish_normed(const Row& row, acc* seen, acc* scales) {
    if constexpr (kSizes.carried > 0) {
      static_assert(Cell::kSaved == kSizes.gates);
      Base::for_each_vector(hidden, [&](int64_t u, int64_t n) FUSEDLSTM_LAMBDA {
        const auto begun = begin(row, u, n);
        store(seen + u, begun.carried[0]);
        for (int k = 0; k < Cell::kSaved; ++k) store_some(row.p + k * hidden + u, begun.saved[k], n);
      });
      const auto norm = RowNorm<K>::apply(seen, hidden, a.eps);
      if (scales) {
        scales[kMeanC] = norm.mean;
        scales[kScaleC] = norm.scale;
      }
      Base::for_each_vector(hidden, [&](int64_t u, int64_t n) FUSEDLSTM_LAMBDA {
        V saved[Cell::kSaved];
        for (int k = 0; k < Cell::kSaved; ++k) saved[k] = some(row.p + k * hidden + u, n);
        end(row, u, n, saved, V{}, Base::seen(load<V>(seen + u), u, n));
      });
    }
  }

  // One vector of units up to the new cell state, which is kept as far as zoneout lets it.
  FUSEDLSTM_INLINE Begun<V, kSizes, Cell::kSaved> begin(const Row& row, int64_t u, int64_t n) const {
    const V h = some(row.h + u, n), before[1] = {kSizes.carried > 0 ? some(row.c + u, n) : V{}};
    if (row.before[0]) store_some(row.before[0] + u, h, n);
    V w[kPeepholes];
    Base::peepholes(u, n, w);
    const auto begun = cell.template begin<typename K::Math>(sums_of(row, u, n), h, before, w);
    if constexpr (kSizes.carried > 0) {
      if (row.before[1]) store_some(row.before[1] + u, before[0], n);
      store_some(row.c + u, kept(row.zoneout[1], u, n, before[0], begun.carried[0]), n);
    }
    return begun;
  }

  FUSEDLSTM_INLINE void end(const Row& row, int64_t u, int64_t n, V (&saved)[Cell::kSaved], V h, V seen) const {
    h = cell.template end<typename K::Math>(saved, h, seen);
    h = kept(row.zoneout[0], u, n, some(row.h + u, n), h);
    store_some(row.h + u, h, n);
    store_some(row.output + u, h, n);
    if (!row.saved) return;
    for (int k = 0; k < Cell::kSaved; ++k) store_some(row.saved + k * hidden + u, saved[k], n);
  }

  FUSEDLSTM_INLINE V kept(const typename Base::Zone& zoneout, int64_t u, int64_t n, V before, V after) const {
    return zoneout ? zoned_out<typename K::Math>(zoneout(u, n), before, after) : after;
  }

  FUSEDLSTM_INLINE Sums<V, kSizes> sums_of(const Row& row, int64_t u, int64_t n) const {
    const acc *gain_ih = Base::parameter(a.parameters.gain_ih), *bias_ih = Base::parameter(a.parameters.bias_ih);
    const acc *gain = Base::parameter(a.parameters.gain), *bias = Base::parameter(a.parameters.bias);
    Sums<V, kSizes> sums{};
    for (int gate = 0; gate < kSizes.gates; ++gate) {
      const int64_t at = gate * hidden + u;
      V from_hidden = some(row.p + at, n);
      if (gain) from_hidden *= some(gain + at, n);
      if (bias) from_hidden += some(bias + at, n);
      V from_input = Cell::kNormsBoth ? V{} : some(row.x + at, n);
      if (gain_ih) from_input *= some(gain_ih + at, n);
      if (bias_ih) from_input += some(bias_ih + at, n);
      if (gate < kSizes.joined) {
        sums.joined[gate] = from_input + from_hidden;
      } else {
        sums.from_input[gate - kSizes.joined] = from_input;
        sums.from_hidden[gate - kSizes.joined] = from_hidden;
      }
    }
    return sums;
  }
};

}  // namespace fusedlstm::cpu
