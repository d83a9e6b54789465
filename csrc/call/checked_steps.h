// The arguments of `<cell>_steps_second_order`, checked, and its results, allocated: of every device's binding.
#pragma once

#include "cells/steps.h"
#include "step_arguments.h"
#include "tensors.h"

namespace fusedlstm {

class CheckedSteps : public StepsArguments {
 public:
  CellSizes cell;
  int64_t rows = 0, hidden = 0;
  ScalarType dtype{};
  bool moves = false, arrives = false;  // whether there are tangents; and gradients

  // Checks sizes, dtypes and devices, and makes all dense.
  CheckedSteps(StepsArguments arguments, CellSizes cell) : StepsArguments(std::move(arguments)), cell(cell) {
    const size_t states = static_cast<size_t>(cell.states);
    STD_TORCH_CHECK(before.size() == states && after.size() == states && before_tangent.size() == states &&
                        d_after.size() == states,
                    "fusedlstm: expected ", states, " states before, after, and of tangents and gradients, got ",
                    before.size(), ", ", after.size(), ", ", before_tangent.size(), ", ", d_after.size());
    const Tensor& whole = after.back();  // [N, H] of every cell; h is, where there is no projection
    STD_TORCH_CHECK(whole.dim() == 2, "fusedlstm: expected states with 2 dimensions, got ", whole.dim());
    rows = whole.size(0);
    hidden = whole.size(1);
    dtype = whole.scalar_type();
    facts_ = Facts::of(whole);
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                    "fusedlstm: expected steps of dtype float32 or float64, got ", name_of(dtype));
    STD_TORCH_CHECK(cell.apart() > 0 || !hidden_sums, "fusedlstm: expected no hidden_sums for this cell, got some");
    for (size_t i = 0; i < states; ++i) {
      if (i > 0 || cell.takes_h) {
        check(before[i], 1, "before");
        check(before_tangent[i], 1, "before_tangent");
      }
      if (i > 0 || cell.reads_h) check(after[i], 1, "after");
      check(d_after[i], 1, "d_after");
      arrives = arrives || d_after[i];
    }
    check(saved, cell.saved, "saved");
    check(sums, cell.gates, "sums");
    check(hidden_sums, cell.gates, "hidden_sums");
    check(d_h_tangent, 1, "d_h_tangent");
    moves = sums.has_value();
    arrives = arrives || d_h_tangent;
  }

  Tensor new_rows(int64_t values) const { return new_tensor(after.back(), {rows, values * hidden}, dtype); }

 private:
  Facts facts_;

  void check(OptionalTensor& t, int64_t values, const char* name) {
    if (t) check(*t, values, name);
  }
  void check(Tensor& t, int64_t values, const char* name) {
    check_sizes(t, {rows, values * hidden}, name);
    const Facts facts = Facts::of(t);
    STD_TORCH_CHECK(facts.dtype == facts_.dtype && facts.device_type == facts_.device_type &&
                        facts.device_index == facts_.device_index,
                    "fusedlstm: expected ", name, " of the dtype and on the device of the states");
    check_memory(t, name);
    t = dense(t);
  }
};

inline StepsResults new_results(const CheckedSteps& t) {
  StepsResults r;
  const auto push = [&](Tensors& list, bool exists, int64_t values) {
    list.push_back(exists ? t.new_rows(values) : new_tensor(t.after.back(), {0}, t.dtype));
  };
  for (int i = 0; i < t.cell.states; ++i) {
    const bool is_used = t.arrives && (i > 0 || t.cell.takes_h);
    push(r.after_tangent, t.moves, 1);
    push(r.d_before, is_used, 1);
    push(r.d_before_tangent, is_used && t.moves, 1);
  }
  for (const bool is_part_apart : {false, true}) {
    const bool exists = t.arrives && (t.cell.apart() > 0 || !is_part_apart);
    push(r.d_sums, exists, t.cell.gates);
    push(r.d_sums, exists && t.moves, t.cell.gates);
  }
  return r;
}

// What the kernels are told.
inline StepsArgs args_of(const CheckedSteps& t, const StepsResults& r, bool is_relu) {
  const auto given = [](const OptionalTensor& x) { return x ? x->data_ptr() : nullptr; };
  const auto result = [](const Tensor& x) { return x.dim() > 1 ? x.data_ptr() : nullptr; };
  StepsArgs a{};
  a.rows = t.rows;
  a.hidden = t.hidden;
  a.is_relu = is_relu;
  for (size_t i = 0; i < t.before.size(); ++i) {
    if (i > 0 || t.cell.takes_h) {
      a.before[i] = t.before[i].data_ptr();
      a.before_tangent[i] = given(t.before_tangent[i]);
    }
    if (i > 0 || t.cell.reads_h) a.after[i] = t.after[i].data_ptr();
    a.d_after[i] = given(t.d_after[i]);
    a.after_tangent[i] = result(r.after_tangent[i]);
    a.d_before[i] = result(r.d_before[i]);
    a.d_before_tangent[i] = result(r.d_before_tangent[i]);
  }
  a.saved = t.saved.data_ptr();
  a.sums = given(t.sums);
  a.hidden_sums = given(t.hidden_sums);
  a.d_h_tangent = given(t.d_h_tangent);
  void** gradients[] = {&a.d_sums, &a.d_sums_tangent, &a.d_hidden_sums, &a.d_hidden_sums_tangent};
  for (size_t i = 0; i < r.d_sums.size(); ++i) *gradients[i] = result(r.d_sums[i]);
  return a;
}

}  // namespace fusedlstm
