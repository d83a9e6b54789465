// The results of a layer operator, allocated; and what its backward operator is given, checked.
#pragma once

#include <cstring>
#include <utility>

#include "checked_layer.h"

namespace fusedlstm {

inline Tensor new_zeros(const Tensor& like, const Sizes& sizes, ScalarType dtype) {
  Tensor t = new_tensor(like, sizes, dtype);
  if (t.is_cpu())  // an operator for a few states takes as long as a short step
    std::memset(t.data_ptr(), 0, static_cast<size_t>(t.numel() * t.element_size()));
  else
    torch::stable::zero_(t);
  return t;
}

// clears: what rows that do not run leave is zero, for kernels that do not write it. saved and carried are undefined in
// inference. Of a layer of a stack, all but the output is of all layers, and the last states are in what they share.
inline LayerResults new_results(const CheckedLayer& t, bool is_training, bool clears) {
  const auto new_rows = [&](const Sizes& sizes, ScalarType dtype) {
    return clears ? new_zeros(t.input, t.each(sizes), dtype) : new_tensor(t.input, t.each(sizes), dtype);
  };
  const Sizes sizes = t.row_sizes(t.directions * t.recurrent());
  LayerResults r;
  if (t.stack && t.stack->spare && has_sizes(*t.stack->spare, t.each(sizes)) && !clears)
    r.output = *std::exchange(t.stack->spare, std::nullopt);
  else
    r.output = new_rows(sizes, t.dtype);
  Tensors& last = t.stack ? t.stack->last : r.last;
  if (!last.empty()) {
    for (size_t i = 0; i < last.size(); ++i) check_sizes(last[i], t.state_sizes(i), "the states of every layer");
    r.saved = t.stack->saved;
    r.carried = t.stack->carried;
    return r;
  }
  last.reserve(size_t(t.cell.states));
  for (size_t i = 0; i < size_t(t.cell.states); ++i)
    last.push_back(new_tensor(t.input, t.each(t.state_sizes(i)), t.dtype));
  if (is_training) {
    r.saved = new_rows(t.kept_sizes(t.cell.saved), t.dtype);
    r.carried = new_rows(t.kept_sizes(t.cell.carried), t.acc_dtype());
  }
  if (t.stack) {
    t.stack->saved = r.saved;
    t.stack->carried = r.carried;
  }
  return r;
}

// Where the last states of a layer go: of a stack, those of all.
inline const Tensors& last_states(const CheckedLayer& t, const LayerResults& r) {
  return t.stack ? t.stack->last : r.last;
}

// Of size 0 where not needed. Zeros where there is nothing to run; otherwise not initialized. Of a layer of a stack,
// those of the initial states are of all layers.
inline LayerGradients new_gradients(const CheckedLayer& t, const std::vector<bool>& needs) {
  const auto result = [&](Need need, const Sizes& sizes) {
    if (!needs[need]) return new_tensor(t.input, {0}, t.dtype);
    return t.rows == 0 ? new_zeros(t.input, t.each(sizes), t.dtype) : new_tensor(t.input, t.each(sizes), t.dtype);
  };
  const auto results = [&](Need need, const Tensors& arguments, const Sizes& sizes) {
    Tensors all;
    for (size_t d = 0; d < arguments.size(); ++d) all.push_back(result(need, sizes));
    return all;
  };
  const auto states = [&](Need need, const Tensors& arguments) {
    Tensors all;
    for (size_t i = 0; i < arguments.size(); ++i) all.push_back(result(need, t.state_sizes(i)));
    return all;
  };
  LayerGradients g;
  g.input = result(kInput, t.row_sizes(t.features));
  g.initial = t.stack && !t.stack->d_initial.empty() ? t.stack->d_initial : states(kInitial, t.states());
  if (t.stack) t.stack->d_initial = g.initial;
  g.weight_ih = results(kWeightIh, t.weight_ih, t.weight_ih_sizes());
  g.weight_hh = results(kWeightHh, t.weight_hh, t.weight_hh_sizes());
  g.bias_ih = results(kBiasIh, t.bias_ih, t.bias_sizes());
  g.bias_hh = results(kBiasHh, t.bias_hh, t.bias_sizes());
  g.weight_hr = results(kWeightHr, t.weight_hr, t.weight_hr_sizes());
  g.reset_state = states(kResetState, t.reset_state);
  return g;
}

// What a backward operator is given beside the layer: checked, with inner strides of 1; what was saved is dense.
struct CheckedIncoming {
  OptionalTensor d_output;
  OptionalTensors d_last;
  OptionalTensor d_carried;
  Tensor output, saved, carried;

  CheckedIncoming(BackwardArguments& given, const CheckedLayer& t)
      : d_output(std::move(given.d_output)),
        d_last(std::move(given.d_last)),
        d_carried(std::move(given.d_carried)),
        output(std::move(given.output)),
        saved(std::move(given.saved)),
        carried(std::move(given.carried)) {
    STD_TORCH_CHECK(given.needs.size() == kNeeds, "fusedlstm: expected ", int(kNeeds), " needs, got ",
                    given.needs.size());
    STD_TORCH_CHECK(d_last.size() == t.states().size(), "fusedlstm: expected ", t.states().size(), " d_last, got ",
                    d_last.size());
    const auto check_output = [&](const Tensor& y, const char* name) {
      t.like_input(y, t.row_sizes(t.directions * t.recurrent()), name);
    };
    const auto check_carried = [&](const Tensor& states, const char* name) {
      check_sizes(states, t.each(t.kept_sizes(t.cell.carried)), name);
      STD_TORCH_CHECK(states.scalar_type() == t.acc_dtype(), "fusedlstm: expected ", name,
                      " of the accumulation dtype, ", name_of(t.acc_dtype()), ", got ", name_of(states.scalar_type()));
      t.check_place(states, name);
    };
    check_output(output, "output");
    t.like_input(saved, t.kept_sizes(t.cell.saved), "saved");
    check_carried(carried, "carried");
    if (d_output) {
      check_output(*d_output, "d_output");
      d_output = unit_stride(*d_output);
    }
    for (size_t i = 0; i < d_last.size(); ++i)
      if (d_last[i]) {
        t.like_input(*d_last[i], t.state_sizes(i), "d_last");
        d_last[i] = unit_stride(*d_last[i]);
      }
    if (d_carried) {
      check_carried(*d_carried, "d_carried");
      d_carried = dense_after(t.lead, *d_carried);
    }
    for (Tensor* kept : {&output, &saved, &carried}) *kept = dense_after(t.lead, *kept);
  }
};

}  // namespace fusedlstm
