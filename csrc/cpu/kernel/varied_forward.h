// The forward recurrence of a layer with variants: dropout and zoneout of states, layer norm, peepholes.
#pragma once

#include "varied_rows.h"

namespace fusedlstm::cpu {

template <class K, class Cell>
class VariedForward : VariedRows<K, Cell> {
  using Base = VariedRows<K, Cell>;
  using Base::index, Base::plan, Base::cell, Base::steps, Base::batch, Base::hidden, Base::gates, Base::width;
  using Base::kSizes, Base::some, Base::some_of;

 public:
  using V = typename K::V;
  using acc = typename K::acc;

  VariedForward(const VariedForwardArgs& args, const Cell& cell, const Plan& plan)
      : Base(args, cell, plan),
        a(args),
        weight(1, hidden, gates, rows_of_group(plan, args.shape), Transposed<K>::reading_of(plan, false)) {}

  int64_t workspace_bytes() {
    Arena arena{nullptr};
    lay_out(arena, 0);
    return arena.used;
  }

  void run(Share& share, char* memory) {
    Arena arena{memory};
    lay_out(arena, share.first);
    Weights weights{};
    weights.hh = a.weight_hh;
    weight.prepare(share, &weights, &Weights::hh);
    const Range rows = share.of(batch);
    for (int64_t b = rows.begin; b < rows.end; ++b) start(b);
    share.meet();
    for_each_task(plan, a.shape, share, [&](const Task& task) { run_steps(task); });
  }

 private:
  const VariedForwardArgs& a;
  Transposed<K> weight;
  // Shared by the team, [B] rows: sums of gates; states, and what h enters the product as, where that is masked; c as h
  // sees it, where that is normalised.
  acc *sums, *states[kMaxStates], *masked, *seen_rows;

  FUSEDLSTM_NOINLINE void lay_out(Arena& arena, int64_t share) {
    weight.lay_out(arena, plan.threads, share);
    sums = arena.take<acc>(batch * gates);
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
      multiply(task);
      task.meet();
      Base::for_each_row(task, [&](int64_t b) {
        row(s, b);
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
    if (const acc* mask = Base::row_of(a.mask, t, b))
      for (int64_t u = 0; u < hidden; u += K::kLanes)
        store(masked + b * width + u, some(states[0] + b * width + u, hidden - u) * some(mask + u, hidden - u));
  }

  FUSEDLSTM_NOINLINE void multiply(const Task& task) {
    const Range rows = task.rows;
    const acc* from = (a.mask.data ? masked : states[0]) + rows.begin * width;
    weight.multiply(0, task.of(weight.panels), rows.end - rows.begin, {from, width},
                    [&](int64_t r, const acc* product, int64_t column) {
                      const int64_t n = gates - column < K::kPanel ? gates - column : K::kPanel;
                      __builtin_memcpy(sums + (rows.begin + r) * gates + column, product, size_t(n) * sizeof(acc));
                    });
  }

  // Where a row of a step is.
  struct Row {
    const acc *x, *zoneout[kMaxStates];
    acc *p, *output, *saved, *before[kMaxStates], *h, *c;
  };

  FUSEDLSTM_NOINLINE void row(int64_t s, int64_t b) {
    const int64_t t = Base::step(s), i = t * batch + b;
    Row row{};
    row.x = Base::at(a.from_input, i, gates);
    row.p = sums + b * gates;
    row.output = Base::at(a.output, i, hidden);
    row.saved = Base::at(a.kept.saved, i, Cell::kSaved * hidden);
    row.h = states[0] + b * width;
    row.c = kSizes.carried > 0 ? states[kSizes.states - 1] + b * width : nullptr;
    for (int k = 0; k < kSizes.states; ++k) {
      row.zoneout[k] = Base::row_of(a.zoneout[k], t, b);
      row.before[k] = Base::at(a.kept.before[k], i, hidden);
    }
    acc *normed = Base::at(a.kept.normed, i, gates), *scales = Base::at(a.kept.scales, i, kVariedScales);
    if (scales) Base::copy(scales, nullptr, kVariedScales);
    if (!index.active(t, b)) return clear(row, normed);
    if (a.parameters.gain) {
      if constexpr (Cell::kNormsBoth)
        for (int64_t u = 0; u < gates; u += K::kLanes)
          store_some(row.p + u, some(row.p + u, gates - u) + some(row.x + u, gates - u), gates - u);
      const auto norm = RowNorm<K>::apply(row.p, gates, a.eps);
      if (normed) {
        Base::copy(normed, row.p, gates);
        scales[0] = norm.scale;
      }
    }
    if (kSizes.carried > 0 && a.parameters.gain_c) return finish_normed(row, seen_rows + b * width, scales);
    Base::for_each_vector(hidden, [&](int64_t u, int64_t n) FUSEDLSTM_LAMBDA {
      auto begun = begin(row, u, n);
      end(row, u, n, begun.saved, begun.h, begun.carried[0]);
    });
  }

  // What a row that does not run leaves: zeros.
  FUSEDLSTM_NOINLINE void clear(const Row& row, acc* normed) const {
    Base::copy(row.output, nullptr, hidden);
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
        scales[1] = norm.mean;
        scales[2] = norm.scale;
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

  FUSEDLSTM_INLINE V kept(const acc* zoneout, int64_t u, int64_t n, V before, V after) const {
    return zoneout ? zoned_out<typename K::Math>(some(zoneout + u, n), before, after) : after;
  }

  FUSEDLSTM_INLINE Sums<V, kSizes> sums_of(const Row& row, int64_t u, int64_t n) const {
    const acc *gain = Base::parameter(a.parameters.gain), *bias = Base::parameter(a.parameters.bias);
    Sums<V, kSizes> sums{};
    for (int gate = 0; gate < kSizes.gates; ++gate) {
      const int64_t at = gate * hidden + u;
      V from_hidden = some(row.p + at, n);
      if (gain) from_hidden *= some(gain + at, n);
      if (bias) from_hidden += some(bias + at, n);
      const V from_input = Cell::kNormsBoth ? V{} : some(row.x + at, n);
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
