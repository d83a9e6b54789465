// What the two passes of a varied recurrence have in common: where the rows of a step are, and who works on which.
//
// A step is two phases. The product's: the whole product with weight_hh of all rows, which threads divide by its
// columns (or by rows, where they are alone with some). The rows': whatever a row needs as a whole, norms of its gates
// first of all, which threads divide by rows. They meet after each. Products with the input, and those that become
// gradients of weights, are made for many steps at once, while what they are made of is in the cache.
#pragma once

#include "cells/varied.h"
#include "cpu/division.h"
#include "cpu/varied_args.h"
#include "row_index.h"
#include "row_norm.h"

namespace fusedlstm::cpu {

template <class K, class Cell>
struct VariedRows {
  using V = typename K::V;
  using acc = typename K::acc;
  static constexpr CellSizes kSizes = Cell::kSizes;

  const VariantArgs& variants;
  const Shape& shape;
  const Cell cell;
  const Plan& plan;
  const RowIndex index;
  const int64_t steps, batch, hidden, gates;  // gates: values of all of a row
  const int64_t width;                        // elements from one row of a state to the next

  VariedRows(const LayerArgs& layer, const VariantArgs& variants, const Cell& cell, const Plan& plan)
      : variants(variants),
        shape(layer.shape),
        cell(cell),
        plan(plan),
        index(layer.shape, layer.rows, variants.is_reverse),
        steps(shape.steps),
        batch(shape.batch),
        hidden(shape.hidden),
        gates(kSizes.gates * hidden),
        width(round_up(hidden, K::kPanel)) {}

  int64_t step(int64_t s) const { return index.step(s, 0); }

  // Row (t, b) of an array [T, B, n]; null of null.
  template <class T>
  static auto at(T* data, int64_t row, int64_t n) {
    using Element = std::conditional_t<std::is_const_v<T>, const acc, acc>;
    return data ? static_cast<Element*>(data) + row * n : nullptr;
  }
  static const acc* row_of(const RowData& data, int64_t t, int64_t b) {
    return data.data ? static_cast<const acc*>(data.data) + t * data.step + b * data.batch : nullptr;
  }
  static const acc* parameter(const void* p) { return static_cast<const acc*>(p); }

  // The first lanes of a vector, and zeros.
  static FUSEDLSTM_INLINE V some(const acc* p, int64_t n) { return load_some<V>(p, n); }
  static FUSEDLSTM_INLINE V some_of(const acc* p, int64_t u, int64_t n) { return p ? load_some<V>(p + u, n) : V{}; }

  // A row of Zoneout.
  struct Zone {
    const acc* part;
    const bool* chosen;

    // Whether anything is kept.
    FUSEDLSTM_INLINE explicit operator bool() const { return part || chosen; }
    // Of the first n units from u on: zeros without any.
    FUSEDLSTM_INLINE V operator()(int64_t u, int64_t n) const {
      if (!chosen) return some_of(part, u, n);
      // In steps, each to twice the width: at once GCC takes every element out by itself.
      const auto bytes = load_some<Lanes<uint8_t>>(reinterpret_cast<const uint8_t*>(chosen) + u, n);
      const auto words = __builtin_convertvector(__builtin_convertvector(bytes, Lanes<uint16_t>), Lanes<int32_t>);
      return __builtin_convertvector(words, V);
    }

   private:
    template <class T>
    using Lanes = typename VectorOf<T, K::kLanes* int(sizeof(T))>::type;
  };
  Zone zone(int k, int64_t t, int64_t b) const {
    const Zoneout& z = variants.zoneout[k];
    if (!z.is_chosen) return {row_of(z.part, t, b), nullptr};
    return {nullptr, static_cast<const bool*>(z.part.data) + t * z.part.step + b * z.part.batch};
  }

  // body(u, n) for all vectors of n units from u on: of whole ones n is a constant, and nothing of them is masked.
  template <class Body>
  static FUSEDLSTM_INLINE void for_each_vector(int64_t count, Body body) {
    int64_t u = 0;
    for (; u + K::kLanes <= count; u += K::kLanes) body(u, int64_t(K::kLanes));
    if (u < count) body(u, count - u);
  }

  FUSEDLSTM_INLINE void peepholes(int64_t u, int64_t n, V (&w)[kPeepholes]) const {
    const acc* from = parameter(variants.parameters.weight_ch);
    for (int k = 0; k < kPeepholes; ++k) w[k] = kSizes.carried > 0 && from ? some(from + k * hidden + u, n) : V{};
  }

  // c as h sees it, from its normalised value.
  FUSEDLSTM_INLINE V seen(V normed, int64_t u, int64_t n) const {
    return normed * some(parameter(variants.parameters.gain_c) + u, n) +
           some_of(parameter(variants.parameters.bias_c), u, n);
  }

  // Rows that are one share's work, of those of a task: body(share, rows). What a share does does not depend on how
  // many shares a thread has.
  template <class Body>
  void for_each_share(const Task& task, Body body) const {
    if (!task.team) return body(task.group, task.rows);
    for (int i = task.team->first; i < task.team->last; ++i) body(int64_t(i), part(batch, i, task.team->count));
  }

  template <class Body>
  void for_each_row(const Task& task, Body body) const {
    const Range rows = task.team ? task.team->of(batch) : task.rows;
    for (int64_t b = rows.begin; b < rows.end; ++b) body(b);
  }

  static void copy(acc* to, const acc* from, int64_t n) {
    if (from)
      __builtin_memcpy(to, from, size_t(n) * sizeof(acc));
    else
      __builtin_memset(to, 0, size_t(n) * sizeof(acc));
  }
};

}  // namespace fusedlstm::cpu
