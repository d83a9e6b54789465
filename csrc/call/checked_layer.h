// The arguments of a layer operator, checked, with the sizes that follow: what every device's binding starts from.
//
// One layer, or an ensemble of layers: M members of the same sizes. Then every tensor, argument or result, has the
// members as one more dimension in front, of any stride; only batch_sizes are common to all.
//
// The checks here are those of a plain call: only when one fails does the Python package look for what PyTorch's own
// layer would raise. They also make a direct call of the operator with wrong sizes, dtypes or devices an exception.
#pragma once

#include "arguments.h"
#include "cells/sizes.h"
#include "tensors.h"

namespace fusedlstm {

// What the weights of a layer say of it.
struct WeightSizes {
  int64_t directions, features, hidden, proj;
  ScalarType dtype;
};

class CheckedLayer : public LayerArguments {
 public:
  CellSizes cell;
  int64_t members = 1, lead = 0;  // lead: how many dimensions are in front of a member's, 1 for an ensemble
  int64_t steps = 0, batch = 0, rows = 0, features = 0, hidden = 0, proj = 0, directions = 0;  // of each member
  ScalarType dtype{};

  // Derives the sizes, checks everything, and makes inner strides 1 (weights: contiguous, member by member).
  CheckedLayer(LayerArguments&& arguments, CellSizes cell) : LayerArguments(std::move(arguments)), cell(cell) {
    derive_place();
    derive_sizes_of_weights();
    derive_sizes_of_input();
    check_weights();
    check_states();
    check_row_states();
    input = unit_stride(input);
  }
  // One layer whose weights come in a form of their own, frozen or quantized, and have these sizes. It may lack initial
  // states.
  CheckedLayer(LayerArguments&& arguments, CellSizes cell, const WeightSizes& frozen)
      : LayerArguments(std::move(arguments)),
        cell(cell),
        hidden(frozen.hidden),
        proj(frozen.proj),
        directions(frozen.directions) {
    derive_place();
    STD_TORCH_CHECK(lead == 0, "fusedlstm: expected input of one layer with such weights, got one of an ensemble");
    derive_sizes_of_input();
    STD_TORCH_CHECK(features == frozen.features && dtype == frozen.dtype, "fusedlstm: expected input of ",
                    name_of(frozen.dtype), " with ", frozen.features, " features, as the weights have, got ",
                    name_of(dtype), " with ", features);
    if (!states().empty() || !reset_state.empty()) check_states();
    check_row_states();
    input = unit_stride(input);
  }

  int64_t recurrent() const { return proj > 0 ? proj : hidden; }
  // Where states and what is kept are of all layers of a stack: of how many, and the first row of this one.
  int64_t layers() const { return stack ? stack->layers : 1; }
  int64_t first_row() const { return place * directions; }
  ScalarType acc_dtype() const { return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float; }

  // The sizes of a tensor of which every member has one.
  Sizes each(const Sizes& sizes) const { return lead > 0 ? Sizes(members, sizes) : sizes; }
  // A member's input, output and their gradients.
  Sizes row_sizes(int64_t features) const {
    return batch_sizes ? Sizes{rows, features} : Sizes{steps, batch, features};
  }
  // A member's state `index`: the first is h. A stack has those of all layers.
  Sizes state_sizes(size_t index) const { return {layers() * directions, batch, index == 0 ? recurrent() : hidden}; }
  // Of a member, or of all layers of a stack, values that are kept for each unit and step.
  Sizes kept_sizes(int64_t values) const { return {layers() * directions, rows, values * hidden}; }
  Sizes weight_ih_sizes() const { return {cell.gates * hidden, features}; }
  Sizes weight_hh_sizes() const { return {cell.gates * hidden, recurrent()}; }
  Sizes bias_sizes() const { return {cell.gates * hidden}; }
  Sizes weight_hr_sizes() const { return {proj, hidden}; }

  // Checks that t has, for each member, these sizes, and the dtype and device of the input.
  void like_input(const Tensor& t, const Sizes& sizes, const char* name) const {
    check_sizes(t, each(sizes), name);
    const Facts facts = Facts::of(t);
    check_dtype(facts.dtype, input_facts_.dtype, name);
    check_place(t, facts, name);
  }
  // Checks that t is on the input's device, and has memory.
  void check_place(const Tensor& t, const char* name) const { check_place(t, Facts::of(t), name); }

 private:
  Facts input_facts_;

  void check_place(const Tensor& t, const Facts& facts, const char* name) const {
    STD_TORCH_CHECK(facts.device_type == input_facts_.device_type && facts.device_index == input_facts_.device_index,
                    "fusedlstm: expected ", name, " on the input's device");
    check_memory(t, name);
  }
  void derive_place();
  void derive_sizes_of_weights();
  void derive_sizes_of_input();
  void read_batch_sizes();
  void check_weights();
  void check_states();
  void check_row_states();
};

// Of the input: members, dtype, device.
inline void CheckedLayer::derive_place() {
  const int64_t input_dim = batch_sizes ? 2 : 3;
  lead = input.dim() - input_dim;
  STD_TORCH_CHECK(lead == 0 || lead == 1, "fusedlstm: expected ", batch_sizes ? "packed " : "", "input with ",
                  input_dim, " dimensions, or one more for an ensemble, got ", input.dim());
  if (lead > 0) members = input.size(0);
  dtype = input.scalar_type();
  input_facts_ = Facts::of(input);
  check_memory(input, "input");
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16 ||
                      dtype == ScalarType::Half,
                  "fusedlstm: expected input of dtype float32, float64, bfloat16 or float16, got ", name_of(dtype));
}

inline void CheckedLayer::derive_sizes_of_weights() {
  const size_t d = weight_ih.size();
  directions = static_cast<int64_t>(d);
  STD_TORCH_CHECK(d == 1 || d == 2, "fusedlstm: expected 1 or 2 directions, got ", d);
  STD_TORCH_CHECK(weight_hh.size() == d, "fusedlstm: expected ", d, " weight_hh, got ", weight_hh.size());
  const char* of_members = lead > 0 ? "members, " : "";
  STD_TORCH_CHECK(weight_hh[0].dim() == lead + 2 && weight_hh[0].size(lead) % cell.gates == 0,
                  "fusedlstm: expected weight_hh of size [", of_members, cell.gates, " * hidden_size, ...], got ",
                  sizes_of(weight_hh[0]));
  hidden = weight_hh[0].size(lead) / cell.gates;
  STD_TORCH_CHECK(hidden > 0, "fusedlstm: expected a positive hidden size, got ", hidden);
  if (!weight_hr.empty()) {
    STD_TORCH_CHECK(weight_hr[0].dim() == lead + 2 && weight_hr[0].size(lead) > 0,
                    "fusedlstm: expected weight_hr of size [", of_members, "proj_size, ", hidden, "], got ",
                    sizes_of(weight_hr[0]));
    proj = weight_hr[0].size(lead);
  }
}

inline void CheckedLayer::derive_sizes_of_input() {
  if (batch_sizes) return read_batch_sizes();
  steps = input.size(lead);
  batch = input.size(lead + 1);
  features = input.size(lead + 2);
  rows = steps * batch;
}

inline void CheckedLayer::read_batch_sizes() {
  STD_TORCH_CHECK(!lengths && !reset, "fusedlstm: expected no lengths and no reset with packed input");
  STD_TORCH_CHECK(batch_sizes->dim() == 1 && batch_sizes->size(0) > 0 && batch_sizes->is_cpu() &&
                      batch_sizes->scalar_type() == ScalarType::Long,
                  "fusedlstm: expected batch_sizes as a non-empty int64 vector on the CPU");
  check_memory(*batch_sizes, "batch_sizes");
  batch_sizes = dense(*batch_sizes);
  const auto* sizes = batch_sizes->const_data_ptr<int64_t>();
  steps = batch_sizes->size(0);
  batch = sizes[0];
  for (int64_t t = 0; t < steps; ++t) {
    STD_TORCH_CHECK(sizes[t] > 0 && sizes[t] <= batch && (t == 0 || sizes[t] <= sizes[t - 1]),
                    "fusedlstm: expected positive, non-increasing batch_sizes, got ", sizes[t], " at step ", t);
    rows += sizes[t];
  }
  STD_TORCH_CHECK(input.size(lead) == rows, "fusedlstm: expected ", rows, " packed rows, got ", input.size(lead));
  features = input.size(lead + 1);
}

inline void CheckedLayer::check_weights() {
  const auto check = [&](Tensors& list, const Sizes& sizes, const char* name) {
    STD_TORCH_CHECK(list.empty() || list.size() == weight_ih.size(), "fusedlstm: expected 0 or ", weight_ih.size(), " ",
                    name, ", got ", list.size());
    for (Tensor& weight : list) {
      like_input(weight, sizes, name);
      weight = dense_after(lead, weight);
    }
  };
  check(weight_ih, weight_ih_sizes(), "weight_ih");
  check(weight_hh, weight_hh_sizes(), "weight_hh");
  check(bias_ih, bias_sizes(), "bias_ih");
  check(bias_hh, bias_sizes(), "bias_hh");
  check(weight_hr, weight_hr_sizes(), "weight_hr");
  STD_TORCH_CHECK(proj == 0 || cell.projects, "fusedlstm: expected no weight_hr for this cell, got ", weight_hr.size());
}

inline void CheckedLayer::check_states() {
  const Facts& in = input_facts_;
  const std::array<int64_t, 7> own{in.dtype, in.device_type, in.device_index, directions, batch, hidden, recurrent()};
  if (stack && stack->fits == own) return;
  const size_t count = static_cast<size_t>(cell.states);
  Tensors& given = stack ? stack->initial : initial;
  STD_TORCH_CHECK(given.size() == count, "fusedlstm: expected ", count, " initial states, got ", given.size());
  STD_TORCH_CHECK(reset_state.empty() || reset_state.size() == count, "fusedlstm: expected 0 or ", count,
                  " reset states, got ", reset_state.size());
  for (auto& [list, name] : {std::pair{&given, "initial"}, {&reset_state, "reset_state"}})
    for (size_t i = 0; i < list->size(); ++i) {
      like_input((*list)[i], state_sizes(i), name);
      (*list)[i] = unit_stride((*list)[i]);
    }
  if (stack) stack->fits = own;
}

inline void CheckedLayer::check_row_states() {
  if (lengths) {
    check_sizes(*lengths, each({batch}), "lengths");
    check_place(*lengths, "lengths");
    check_dtype_is(*lengths, ScalarType::Long, "lengths of dtype int64");
    lengths = dense(*lengths);
  }
  if (reset) {
    check_sizes(*reset, each({steps, batch}), "reset");
    check_place(*reset, "reset");
    check_dtype_is(*reset, ScalarType::Bool, "reset of dtype bool");
    STD_TORCH_CHECK(directions == 1, "fusedlstm: expected one direction with reset, got ", directions);
  }
}

}  // namespace fusedlstm
