// The backward recurrence of a layer with variants. The gradients of the gates' sums become those of weights and input
// chunk by chunk of steps, as a plain layer's do (gradients.h).
#pragma once

#include "gradients.h"
#include "transposed.h"
#include "varied_rows.h"

namespace fusedlstm::cpu {

template <class K, class Cell>
class VariedBackward : VariedRows<K, Cell> {
  using Base = VariedRows<K, Cell>;
  using Base::index, Base::plan, Base::cell, Base::steps, Base::batch, Base::hidden, Base::gates, Base::width;
  using Base::kSizes, Base::shape, Base::some, Base::some_of;

 public:
  using V = typename K::V;
  using acc = typename K::acc;

  VariedBackward(const VariedBackwardArgs& args, const Cell& cell, const Plan& plan)
      : Base(args, args, cell, plan),
        a(args),
        weight_hh(1, gates, hidden, rows_of_group(plan, shape),
                  Transposed<K>::reading_of(plan, steps == 1 && row_groups(plan, shape) == 1)),
        chunk(steps_of_gradients(plan, shape)),
        ring(shape, chunk + 1, kSizes.apart() > 0 || args.parameters.gain_ih ? kSizes.gates : 0),
        gradients(args, plan, index, ring) {}

  int64_t workspace_bytes() {
    Arena arena{nullptr};
    lay_out(arena, 0);
    return arena.used;
  }

  void run(Share& share, char* memory) {
    Arena arena{memory};
    lay_out(arena, share.first);
    weight_hh.prepare(share, a.weights, &Weights::hh);
    gradients.pack(share);
    start(share);
    share.meet();
    for_each_task(plan, shape, share, [&](const Task& task) { run_steps(task); });
    share.meet();
    write_parameters(share);
    gradients.finish(share);
  }

 private:
  // Those that are summed here.
  enum Parameter { kBias, kWeightCh, kGainIh, kGain, kGainC, kBiasC, kParameters };

  const VariedBackwardArgs& a;
  Transposed<K> weight_hh;
  const int64_t chunk;  // steps whose gates' gradients are kept
  Ring<K> ring;         // has one more, which the next chunk begins with while others are at the last one's sums
  Gradients<K> gradients;
  // Shared by the team, [B] rows: what comes back through the product; gradients of the states, of those that a reset
  // replaces, and of c as h sees it, where that is normalised.
  acc *d_product, *d_states[kMaxStates], *d_reset[kMaxStates], *d_seen;
  acc* sums;  // of each share, gradients of the parameters

  // Gradients of parameters as one share adds them up; null: none.
  struct Sums {
    acc* of[kParameters];
  };

  void* result(int k) const {
    const auto& d = a.d_parameters;
    void* const results[kParameters] = {d.bias, d.weight_ch, d.gain_ih, d.gain, d.gain_c, d.bias_c};
    return results[k];
  }
  int64_t length(int k) const {
    return k == kBias || k == kGainIh || k == kGain ? gates : k == kWeightCh ? kPeepholes * hidden : hidden;
  }

  int64_t sums_length() const {
    int64_t all = 0;
    for (int k = 0; k < kParameters; ++k) all += result(k) ? length(k) : 0;
    return all;
  }
  Sums sums_of(int64_t share) const {
    Sums own{};
    acc* next = sums + share * sums_length();
    for (int k = 0; k < kParameters; ++k) {
      if (!result(k)) continue;
      own.of[k] = next;
      next += length(k);
    }
    return own;
  }

  FUSEDLSTM_NOINLINE void lay_out(Arena& arena, int64_t share) {
    weight_hh.lay_out(arena, plan.threads, share);
    ring.lay_out(arena);
    gradients.lay_out(arena, share);
    d_product = arena.take<acc>(batch * width);
    for (int k = 0; k < kSizes.states; ++k) {
      d_states[k] = arena.take<acc>(batch * width);
      d_reset[k] = arena.take<acc>(a.d_reset_state[k] ? batch * width : 0);
    }
    d_seen = arena.take<acc>(a.parameters.gain_c ? batch * width : 0);
    sums = arena.take<acc>(plan.threads * sums_length());
  }

  FUSEDLSTM_NOINLINE void start(const Share& share) {
    const Range rows = share.of(batch);
    for (int64_t b = rows.begin; b < rows.end; ++b)
      for (int k = 0; k < kSizes.states; ++k) {
        Base::copy(d_states[k] + b * width, state_row<acc>(a.d_last[k], 0, b), hidden);
        if (a.d_reset_state[k]) Base::copy(d_reset[k] + b * width, nullptr, hidden);
      }
    const Range own = share.of(plan.threads);
    for (int64_t i = own.begin; i < own.end; ++i) Base::copy(sums + i * sums_length(), nullptr, sums_length());
  }

  void run_steps(const Task& task) {
    int64_t end = steps;
    do {
      const int64_t begin = end > chunk ? end - chunk : 0;
      for (int64_t s = end - 1; s >= begin; --s) step(task, s);
      gradients.add(task, {begin, end}, end == steps);
      end = begin;
    } while (end > 0);
    Base::for_each_share(task, [&](int64_t, Range rows) {
      for (int64_t b = rows.begin; b < rows.end; ++b) {
        leave(0, b);
        for (int k = 0; k < kSizes.states; ++k) {
          if (a.d_initial[k]) Base::copy(Base::at(a.d_initial[k], b, hidden), d_states[k] + b * width, hidden);
          if (a.d_reset_state[k]) Base::copy(Base::at(a.d_reset_state[k], b, hidden), d_reset[k] + b * width, hidden);
        }
      }
    });
  }

  void step(const Task& task, int64_t s) {
    Base::for_each_share(task, [&](int64_t share, Range rows) {
      const Sums own = sums_of(share);
      for (int64_t b = rows.begin; b < rows.end; ++b) {
        leave(s + 1, b);
        row(s, b, own);
      }
    });
    task.meet();
    multiply(task, s);
    task.meet();
  }

  FUSEDLSTM_NOINLINE void multiply(const Task& task, int64_t s) {
    const Range rows = task.rows;
    const acc* from = ring.d_from_hidden(0, s, rows.begin);
    weight_hh.multiply(0, task.of(weight_hh.panels), Order::kUp, rows.end - rows.begin, {from, ring.gates_width},
                       [&](int64_t r, const acc* product, int64_t column) {
                         const int64_t n = hidden - column < K::kPanel ? hidden - column : K::kPanel;
                         acc* to = d_product + (rows.begin + r) * width + column;
                         __builtin_memcpy(to, product, size_t(n) * sizeof(acc));
                       });
  }

  // The gradients of the states that scan position s began with become those of what the one before left.
  FUSEDLSTM_NOINLINE void leave(int64_t s, int64_t b) {
    if (s >= steps) return;
    const int64_t t = Base::step(s);
    acc* d_h = d_states[0] + b * width;
    const acc* mask = Base::row_of(a.mask, t, b);
    for (int64_t u = 0; u < hidden; u += K::kLanes) {
      const int64_t n = hidden - u;
      V d = some(d_product + b * width + u, n);
      if (mask) d *= some(mask + u, n);
      store_some(d_h + u, some(d_h + u, n) + d, n);
    }
    if (!index.reset(t, b)) return;
    for (int k = 0; k < kSizes.states; ++k) {
      acc* d = d_states[k] + b * width;
      if (a.d_reset_state[k]) add_row(d_reset[k] + b * width, d);
      Base::copy(d, nullptr, hidden);
    }
  }
  void add_row(acc* to, const acc* from) const {
    for (int64_t u = 0; u < hidden; u += K::kLanes) add_some(to + u, some(from + u, hidden - u), hidden - u);
  }
  static FUSEDLSTM_INLINE void add_some(acc* to, V v, int64_t n) { store_some(to, some(to, n) + v, n); }

  // Where a row of a step is.
  struct Row {
    typename Base::Zone zoneout[kMaxStates];
    const acc *d_output, *saved, *before[kMaxStates], *normed_ih, *normed, *scales;
    acc *d_from_input, *d_from_hidden, *d_h, *d_c, *d_seen, *d_o;
  };

  FUSEDLSTM_NOINLINE void row(int64_t s, int64_t b, const Sums& own) {
    const int64_t t = Base::step(s), i = t * batch + b;
    Row row{};
    row.d_output = Base::row_of(a.d_output, t, b);
    row.saved = Base::at(a.kept.saved, i, Cell::kSaved * hidden);
    row.normed_ih = Base::at(a.kept.normed_ih, i, gates);
    row.normed = Base::at(a.kept.normed, i, gates);
    row.scales = Base::at(a.kept.scales, i, kVariedScales);
    row.d_from_input = ring.d_from_input(0, s, b);
    row.d_from_hidden = ring.apart > 0 ? ring.d_from_hidden(0, s, b) : nullptr;
    row.d_h = d_states[0] + b * width;
    row.d_c = kSizes.carried > 0 ? d_states[kSizes.states - 1] + b * width : nullptr;
    row.d_seen = a.parameters.gain_c ? d_seen + b * width : nullptr;
    row.d_o = d_product + b * width;  // what was there, `leave` has used
    for (int k = 0; k < kSizes.states; ++k) {
      row.zoneout[k] = Base::zone(k, t, b);
      row.before[k] = Base::at(a.kept.before[k], i, hidden);
    }
    if (!index.active(t, b)) {
      Base::copy(row.d_from_input, nullptr, gates);
      if (row.d_from_hidden) Base::copy(row.d_from_hidden, nullptr, gates);
      return;
    }
    Norms norms;
    if (kSizes.carried > 0 && row.d_seen)
      cell_normed(row, own, norms);
    else
      Base::for_each_vector(hidden, [&](int64_t u, int64_t n) FUSEDLSTM_LAMBDA {
        const Saved saved = saved_of(row, u, n);
        const V d_h = end(row, u, n);
        begin(row, u, n, own, saved, d_h,
              cell.template end_backward<typename K::Math>(saved.of, carried(row, u, n, saved), d_h), norms);
      });
    if (a.parameters.gain)
      leave_norm(row.d_from_hidden ? row.d_from_hidden : row.d_from_input, row.normed,
                 norms.of_sums.means(gates, row.scales[kScale]));
    if (a.parameters.gain_ih)
      leave_norm(row.d_from_input, row.normed_ih, norms.of_input.means(gates, row.scales[kScaleIh]));
  }

  // Of the gates' sums.
  struct Norms {
    NormGradient<K> of_sums, of_input;
  };

  void leave_norm(acc* d, const acc* normed, const NormMeans<acc>& means) const {
    Base::for_each_vector(gates, [&](int64_t u, int64_t n) FUSEDLSTM_LAMBDA {
      store_some(d + u, means.template back<typename K::Math>(some(d + u, n), some(normed + u, n)), n);
    });
  }

  // The row of a cell whose state is normalised: that norm's gradient first, which is of all units together.
  FUSEDLSTM_NOINLINE void cell_normed(const Row& row, const Sums& own, Norms& norms) const {
    NormGradient<K> of_c;
    Base::for_each_vector(hidden, [&](int64_t u, int64_t n) FUSEDLSTM_LAMBDA { end_normed(row, u, n, own, of_c); });
    const auto means = of_c.means(hidden, row.scales[kScaleC]);
    Base::for_each_vector(hidden, [&](int64_t u, int64_t n) FUSEDLSTM_LAMBDA {
      const Saved saved = saved_of(row, u, n);
      const V d_c = means.template back<typename K::Math>(some(row.d_seen + u, n), normed_c(row, u, n, saved));
      begin(row, u, n, own, saved, V{}, {some(row.d_o + u, n), d_c}, norms);
    });
  }

  struct Saved {
    V of[Cell::kSaved];
  };
  FUSEDLSTM_INLINE Saved saved_of(const Row& row, int64_t u, int64_t n) const {
    Saved all;
    for (int k = 0; k < Cell::kSaved; ++k) all.of[k] = some(row.saved + k * hidden + u, n);
    return all;
  }
  // c after the step, before zoneout.
  FUSEDLSTM_INLINE V carried(const Row& row, int64_t u, int64_t n, const Saved& saved) const {
    if constexpr (kSizes.carried > 0) {
      const V before[1] = {some(row.before[1] + u, n)};
      return cell.template carried<typename K::Math>(saved.of, before);
    }
    return V{};
  }
  FUSEDLSTM_INLINE V normed_c(const Row& row, int64_t u, int64_t n, const Saved& saved) const {
    return (carried(row, u, n, saved) - row.scales[kMeanC]) * row.scales[kScaleC];
  }

  // The gradient of h that the cell made; that of the old one waits for what `begin` adds to it.
  FUSEDLSTM_INLINE V end(const Row& row, int64_t u, int64_t n) const {
    V d_h = some(row.d_h + u, n) + some_of(row.d_output, u, n);
    const V z = row.zoneout[0](u, n);
    store_some(row.d_h + u, z * d_h, n);
    return d_h - z * d_h;
  }

  FUSEDLSTM_INLINE void end_normed(const Row& row, int64_t u, int64_t n, const Sums& own, NormGradient<K>& of_c) const {
    const Saved saved = saved_of(row, u, n);
    const V normed = normed_c(row, u, n, saved);
    const auto ended = cell.template end_backward<typename K::Math>(saved.of, Base::seen(normed, u, n), end(row, u, n));
    if (own.of[kGainC]) add_some(own.of[kGainC] + u, ended.seen * normed, n);
    if (own.of[kBiasC]) add_some(own.of[kBiasC] + u, ended.seen, n);
    const V d = ended.seen * some(Base::parameter(a.parameters.gain_c) + u, n);
    of_c.add(d, normed);
    store_some(row.d_seen + u, d, n);
    store_some(row.d_o + u, ended.o, n);
  }

  // One vector of units, from the gradients of h and of c as h sees it to those of the sums and the old states.
  FUSEDLSTM_INLINE void begin(const Row& row, int64_t u, int64_t n, const Sums& own, const Saved& saved, V d_h,
                              Ended<V> ended, Norms& norms) const {
    V w[kPeepholes], before[1] = {}, d_c{};
    Base::peepholes(u, n, w);
    if constexpr (kSizes.carried > 0) {
      before[0] = some(row.before[1] + u, n);
      const V d = some(row.d_c + u, n), z = row.zoneout[1](u, n);
      store_some(row.d_c + u, z * d, n);
      d_c = d - z * d + ended.seen;
    }
    const V h_before = kSizes.takes_h ? some(row.before[0] + u, n) : V{};
    const auto d = cell.template begin_backward<typename K::Math>(saved.of, h_before, before, ended.o, d_h, d_c, w);
    if constexpr (kSizes.carried > 0) {
      add_some(row.d_c + u, d.carried_before[0], n);
      if (own.of[kWeightCh]) {
        add_some(own.of[kWeightCh] + u, d.from_input[0] * before[0], n);
        add_some(own.of[kWeightCh] + hidden + u, d.from_input[1] * before[0], n);
        add_some(own.of[kWeightCh] + 2 * hidden + u, ended.o * carried(row, u, n, saved), n);
      }
    }
    if constexpr (kSizes.takes_h) add_some(row.d_h + u, d.h_before, n);
    for (int gate = 0; gate < kSizes.gates; ++gate) {
      const int64_t at = gate * hidden + u;
      V from_input = d.from_input[gate], from_hidden = d.from_hidden[gate];
      if (own.of[kBias]) add_some(own.of[kBias] + at, from_hidden, n);
      if (a.parameters.gain) {
        from_hidden = enter_norm(norms.of_sums, row.normed, a.parameters.gain, own.of[kGain], from_hidden, at, n);
        if (Cell::kNormsBoth) from_input = from_hidden;
      }
      if (a.parameters.gain_ih)
        from_input =
            enter_norm(norms.of_input, row.normed_ih, a.parameters.gain_ih, own.of[kGainIh], from_input, at, n);
      // One row has both where they are equal.
      store_some(row.d_from_input + at, from_input, n);
      if (row.d_from_hidden) store_some(row.d_from_hidden + at, from_hidden, n);
    }
  }

  // The gradient of normalised sums, by that of what their gain makes of them.
  FUSEDLSTM_INLINE V enter_norm(NormGradient<K>& norm, const acc* normed_row, const void* gain, acc* d_gain, V d,
                                int64_t at, int64_t n) const {
    const V normed = some(normed_row + at, n);
    if (d_gain) add_some(d_gain + at, d * normed, n);
    d *= some(Base::parameter(gain) + at, n);
    norm.add(d, normed);
    return d;
  }

  // Adds up what the shares have, in their order.
  FUSEDLSTM_NOINLINE void write_parameters(const Share& share) const {
    for (int k = 0; k < kParameters; ++k) {
      if (!result(k)) continue;
      const Range own = share.of(length(k));
      for (int64_t i = own.begin; i < own.end; i += K::kLanes) {
        V total{};
        for (int64_t of = 0; of < plan.threads; ++of) total += some(sums_of(of).of[k] + i, own.end - i);
        store_some(static_cast<acc*>(result(k)) + i, total, own.end - i);
      }
    }
  }
};

}  // namespace fusedlstm::cpu
