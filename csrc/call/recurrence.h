// What the operators of a recurrence with variants take and return: one direction of one layer. Names as
// fusedlstm/reference_varied.py has them, which says what they mean; checked.
#pragma once

#include "arguments.h"
#include "cells/varied.h"
#include "tensors.h"

namespace fusedlstm {

struct RecurrenceArguments {
  Tensor input;
  Tensors initial;
  Tensor weight_ih, weight_hh;
  OptionalTensor bias_ih, bias, mask;
  Tensors zoneout;
  OptionalTensor weight_ch, gain_ih, gain, gain_c, bias_c;
  double eps = 0;
  OptionalTensor lengths, reset;
  Tensors reset_state;
  bool reverse = false, keeps = false, allow_tf32 = false;

  template <class Visitor>
  void visit(Visitor v) {
    v("input", input);
    v("initial", initial);
    v("weight_ih", weight_ih);
    v("weight_hh", weight_hh);
    v("bias_ih", bias_ih);
    v("bias", bias);
    v("mask", mask);
    v("zoneout", zoneout);
    v("weight_ch", weight_ch);
    v("gain_ih", gain_ih);
    v("gain", gain);
    v("gain_c", gain_c);
    v("bias_c", bias_c);
    v("eps", eps);
    v("lengths", lengths);
    v("reset", reset);
    v("reset_state", reset_state);
    v("reverse", reverse);
    v("keeps", keeps);
    v("allow_tf32", allow_tf32);
  }
};

struct RecurrenceResults {
  Tensor output;
  Tensors last;
  Tensors kept;  // by the enumeration below

  template <class Visitor>
  void visit(Visitor v) {
    v("output", output);
    v("last", last);
    v("kept", kept);
  }
};

struct RecurrenceBackwardArguments {
  OptionalTensor d_output;
  OptionalTensors d_last;
  RecurrenceArguments recurrence;
  Tensors kept;
  std::vector<bool> needs;  // of input, weight_ih and weight_hh

  template <class Visitor>
  void visit(Visitor v) {
    v("d_output", d_output);
    v("d_last", d_last);
    recurrence.visit(v);
    v("kept", kept);
    v("needs", needs);
  }
};

// Of size [0]: what there is none of, and what is not needed.
struct RecurrenceGradients {
  Tensor input, weight_ih, weight_hh;
  Tensors initial, reset_state;
  Tensors parameters;  // bias_ih, bias, weight_ch, gain_ih, gain, gain_c, bias_c

  template <class Visitor>
  void visit(Visitor v) {
    v("d_input", input);
    v("d_weight_ih", weight_ih);
    v("d_weight_hh", weight_hh);
    v("d_initial", initial);
    v("d_reset_state", reset_state);
    v("d_parameters", parameters);
  }
};

// Places in `kept`: h before each step and, where it is masked, as it entered the product; what a step saves;
// normalised sums of W_ih x, and those of W_hh h, or of both; scales of norms; the other states before.
enum Kept { kHBefore, kEntered, kSavedOfStep, kNormedIh, kNormed, kScales, kCBefore };

class CheckedRecurrence : public RecurrenceArguments {
 public:
  CellSizes cell;
  VariedKind kind;
  int64_t steps = 0, batch = 0, features = 0, hidden = 0, gates = 0;
  ScalarType dtype{};

  // Derives the sizes, checks everything, and makes it dense, input and reset of unit stride.
  CheckedRecurrence(RecurrenceArguments arguments, CellKind cell_kind)
      : RecurrenceArguments(std::move(arguments)), cell(sizes_of(cell_kind)) {
    kind = varied_kind(cell_kind, gain.has_value());
    facts_ = Facts::of(input);
    dtype = input.scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                    "fusedlstm: expected input of dtype float32 or float64, got ", name_of(dtype));
    STD_TORCH_CHECK(input.dim() == 3 && weight_hh.dim() == 2,
                    "fusedlstm: expected input of size [T, B, I] and weight_hh of [", cell.gates,
                    " * hidden_size, hidden_size], got ", fusedlstm::sizes_of(input), " and ",
                    fusedlstm::sizes_of(weight_hh));
    steps = input.size(0);
    batch = input.size(1);
    features = input.size(2);
    hidden = weight_hh.size(1);
    gates = cell.gates * hidden;
    check_place(input, "input");
    input = unit_stride(input);
    check(weight_ih, {gates, features}, "weight_ih");
    check(weight_hh, {gates, hidden}, "weight_hh");
    check_states(initial, "initial");
    if (!reset_state.empty()) check_states(reset_state, "reset_state");
    const bool is_lstm = kind == VariedKind::kLstm;
    STD_TORCH_CHECK(!gain || is_lstm || kind == VariedKind::kNormedGru, "fusedlstm: expected no gain for this cell");
    STD_TORCH_CHECK(gain_ih.has_value() == (gain && is_lstm),
                    "fusedlstm: expected gain_ih with the gain of an LSTM, and only there");
    STD_TORCH_CHECK(!bias_ih || kind == VariedKind::kGru,
                    "fusedlstm: expected bias_ih of a cell whose gates are apart, else all in bias");
    STD_TORCH_CHECK(is_lstm || !(weight_ch || gain_c || bias_c),
                    "fusedlstm: expected weight_ch, gain_c and bias_c of an LSTM alone");
    STD_TORCH_CHECK(gain_c || !bias_c, "fusedlstm: expected gain_c with bias_c");
    check(bias_ih, {gates}, "bias_ih");
    check(bias, {gates}, "bias");
    check(weight_ch, {kPeepholes * hidden}, "weight_ch");
    check(gain_ih, {gates}, "gain_ih");
    check(gain, {gates}, "gain");
    check(gain_c, {hidden}, "gain_c");
    check(bias_c, {hidden}, "bias_c");
    if (mask) check(*mask, sizes_of_factors(*mask, "mask"), "mask");
    STD_TORCH_CHECK(zoneout.empty() || zoneout.size() == size_t(cell.states), "fusedlstm: expected 0 or ", cell.states,
                    " zoneout, got ", zoneout.size());
    for (Tensor& factors : zoneout) check_zoneout(factors);
    check_rows();
  }

  void check(Tensor& t, const Sizes& sizes, const char* name) const {
    check_sizes(t, sizes, name);
    check_dtype(Facts::of(t).dtype, facts_.dtype, name);
    check_place(t, name);
    t = dense(t);
  }
  void check(OptionalTensor& t, const Sizes& sizes, const char* name) const {
    if (t) check(*t, sizes, name);
  }
  void check_states(Tensors& states, const char* name) const {
    STD_TORCH_CHECK(states.size() == size_t(cell.states), "fusedlstm: expected ", cell.states, " ", name, ", got ",
                    states.size());
    for (Tensor& state : states) check(state, {batch, hidden}, name);
  }
  // Whether both parts of a row's sums have gradients of their own.
  bool has_apart() const { return kind == VariedKind::kGru || gain_ih; }
  Tensor state() const { return new_tensor(input, {batch, hidden}, dtype); }
  Tensor rows(int64_t values) const { return new_tensor(input, {steps, batch, values}, dtype); }
  // A new dense tensor of these sizes.
  Tensor like(const Tensor& of) const {
    int64_t sizes[3];
    for (int64_t i = 0; i < of.dim(); ++i) sizes[i] = of.size(i);
    return new_tensor(of, {sizes, of.dim()}, dtype);
  }
  Tensor none() const { return new_tensor(input, {0}, dtype); }
  // The sizes of a row of each of `kept`; 0 for what there is none of.
  std::vector<int64_t> kept_widths() const {
    std::vector<int64_t> widths{hidden,
                                mask ? hidden : 0,
                                saved_of(kind) * hidden,
                                gain_ih ? gates : 0,
                                gain ? gates : 0,
                                gain || gain_c ? kVariedScales : 0};
    widths.resize(size_t(kScales + cell.states), hidden);
    return widths;
  }

 private:
  Facts facts_;

  void check_place(const Tensor& t, const char* name) const {
    const Facts facts = Facts::of(t);
    STD_TORCH_CHECK(facts.device_type == facts_.device_type && facts.device_index == facts_.device_index,
                    "fusedlstm: expected ", name, " on the input's device");
    check_memory(t, name);
  }
  Sizes sizes_of_factors(const Tensor& t, const char* name) const {
    STD_TORCH_CHECK(t.dim() == 3 && (t.size(0) == steps || t.size(0) == 1) && (t.size(1) == batch || t.size(1) == 1),
                    "fusedlstm: expected ", name, " of size [", steps, " or 1, ", batch, " or 1, ", hidden, "], got ",
                    fusedlstm::sizes_of(t));
    return {t.size(0), t.size(1), hidden};
  }
  void check_zoneout(Tensor& t) const {
    const Sizes sizes = sizes_of_factors(t, "zoneout");
    if (t.scalar_type() != ScalarType::Bool) return check(t, sizes, "zoneout");
    check_sizes(t, sizes, "zoneout");
    check_place(t, "zoneout");
    t = dense(t);
  }
  void check_rows() {
    if (lengths) {
      check_sizes(*lengths, {batch}, "lengths");
      check_dtype_is(*lengths, ScalarType::Long, "lengths of dtype int64");
      check_place(*lengths, "lengths");
      lengths = dense(*lengths);
    }
    if (reset) {
      check_sizes(*reset, {steps, batch}, "reset");
      check_dtype_is(*reset, ScalarType::Bool, "reset of dtype bool");
      check_place(*reset, "reset");
    }
  }
};

// Not initialized; `kept` is empty in inference.
inline RecurrenceResults new_results(const CheckedRecurrence& t) {
  RecurrenceResults r;
  r.output = t.rows(t.hidden);
  for (size_t k = 0; k < t.initial.size(); ++k) r.last.push_back(t.state());
  if (t.keeps)
    for (const int64_t width : t.kept_widths()) r.kept.push_back(width > 0 ? t.rows(width) : t.none());
  return r;
}

// Not initialized.
inline RecurrenceGradients new_gradients(const CheckedRecurrence& t, const std::vector<bool>& needs) {
  STD_TORCH_CHECK(needs.size() == 3, "fusedlstm: expected 3 needs, got ", needs.size());
  const auto needed = [&](size_t i, const Tensor& of) { return needs[i] ? t.like(of) : t.none(); };
  RecurrenceGradients g;
  g.input = needed(0, t.input);
  g.weight_ih = needed(1, t.weight_ih);
  g.weight_hh = needed(2, t.weight_hh);
  for (const Tensor& state : t.initial) g.initial.push_back(t.like(state));
  for (const Tensor& state : t.reset_state) g.reset_state.push_back(t.like(state));
  for (const OptionalTensor* parameter : {&t.bias_ih, &t.bias, &t.weight_ch, &t.gain_ih, &t.gain, &t.gain_c, &t.bias_c})
    g.parameters.push_back(*parameter ? t.like(**parameter) : t.none());
  return g;
}

// Checks what a backward operator is given beside the recurrence, and makes it dense.
inline void check_incoming(RecurrenceBackwardArguments& given, const CheckedRecurrence& t) {
  const std::vector<int64_t> widths = t.kept_widths();
  STD_TORCH_CHECK(given.kept.size() == widths.size(), "fusedlstm: expected ", widths.size(), " kept, got ",
                  given.kept.size());
  for (size_t i = 0; i < widths.size(); ++i)
    if (widths[i] > 0) t.check(given.kept[i], {t.steps, t.batch, widths[i]}, "kept");
  STD_TORCH_CHECK(given.d_last.size() == t.initial.size(), "fusedlstm: expected ", t.initial.size(), " d_last, got ",
                  given.d_last.size());
  t.check(given.d_output, {t.steps, t.batch, t.hidden}, "d_output");
  for (OptionalTensor& d : given.d_last) t.check(d, {t.batch, t.hidden}, "d_last");
}

}  // namespace fusedlstm
