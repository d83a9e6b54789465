// The arguments of the layer operators as tensors, checked: what every device's binding starts from.
//
// One layer, or an ensemble of layers: M members of the same sizes. Then every tensor, argument or result, has the
// members as one more dimension in front, of any stride; only batch_sizes are common to all.
//
// The checks here are those of a plain call: only when one fails does fusedlstm/functional.py look for what nn.LSTM
// would raise. They also make a direct call of the operator with wrong sizes, dtypes or devices an exception.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "sizes.h"

namespace fusedlstm {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Tensors = std::vector<Tensor>;

inline std::string to_string(const Sizes& sizes) {
  std::string s = "[";
  for (const int64_t size : sizes) s += (s.size() > 1 ? ", " : "") + std::to_string(size);
  return s + "]";
}

inline std::string sizes_of(const Tensor& t) {
  std::string s = "[";
  for (int64_t i = 0; i < t.dim(); ++i) s += (i ? ", " : "") + std::to_string(t.size(i));
  return s + "]";
}

inline void check_sizes(const Tensor& t, const Sizes& expected, const char* name) {
  bool same = t.dim() == expected.size();
  int64_t i = 0;
  for (const int64_t size : expected) same = same && t.size(i++) == size;
  STD_TORCH_CHECK(same, "fusedlstm: expected ", name, " of size ", to_string(expected), ", got ", sizes_of(t));
}

// Storages can be freed below their tensors, as sharding does with parameters that are not in use.
inline void check_memory(const Tensor& t, const char* name) {
  int64_t bytes = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &bytes));
  STD_TORCH_CHECK(bytes > 0 || t.numel() == 0, "fusedlstm: expected ", name,
                  " with memory, got one whose storage was freed");
}

// A new contiguous tensor on the device of `like`.
inline Tensor new_tensor(const Tensor& like, const Sizes& sizes, ScalarType dtype) {
  int64_t strides[4];
  int64_t stride = 1;
  for (int64_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= sizes.begin()[i] > 0 ? sizes.begin()[i] : 1;
  }
  int32_t device_type, device_index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      sizes.size(), sizes.begin(), strides, torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
      device_type, device_index, &handle));
  return Tensor(handle);
}

// The tensor itself if its last dimension has unit stride, else a contiguous copy.
inline Tensor unit_stride(const Tensor& t) {
  const int64_t last = t.dim() - 1;
  return last < 0 || t.size(last) <= 1 || t.stride(last) == 1 ? t : torch::stable::contiguous(t);
}

inline Tensor dense(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

// The tensor itself if it is contiguous but for its first `lead` dimensions, else a contiguous copy.
inline Tensor dense_after(int64_t lead, const Tensor& t) {
  if (t.is_contiguous()) return t;
  int64_t stride = 1;
  for (int64_t i = t.dim(); i-- > lead;) {
    if (t.size(i) != 1 && t.stride(i) != stride) return torch::stable::contiguous(t);
    stride *= t.size(i);
  }
  return lead > 0 ? t : torch::stable::contiguous(t);
}

// The tensor arguments that all three operators share; see library.cpp for the schema.
struct LayerTensors {
  Tensor input, h_0, c_0;
  Tensors weight_ih, weight_hh, bias_ih, bias_hh, weight_hr;
  OptionalTensor batch_sizes, lengths, reset, reset_h, reset_c;

  int64_t members = 1, lead = 0;  // lead: how many dimensions are in front of a member's, 1 for an ensemble
  int64_t steps = 0, batch = 0, rows = 0, features = 0, hidden = 0, proj = 0, directions = 0;  // of each member
  ScalarType dtype{};

  int64_t recurrent() const { return proj > 0 ? proj : hidden; }
  ScalarType acc_dtype() const { return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float; }

  // The sizes of a tensor of which every member has one.
  Sizes each(const Sizes& sizes) const { return lead > 0 ? Sizes(members, sizes) : sizes; }
  // A member's input, output and their gradients.
  Sizes row_sizes(int64_t features) const {
    return batch_sizes ? Sizes{rows, features} : Sizes{steps, batch, features};
  }

  // One member, after prepare().
  LayerTensors member(int64_t index) const {
    if (lead == 0) return *this;
    LayerTensors one = *this;
    one.members = 1;
    one.lead = 0;
    const auto narrow = [&](Tensor& tensor) { tensor = torch::stable::select(tensor, 0, index); };
    for (Tensor* tensor : {&one.input, &one.h_0, &one.c_0}) narrow(*tensor);
    for (Tensors* list : {&one.weight_ih, &one.weight_hh, &one.bias_ih, &one.bias_hh, &one.weight_hr})
      for (Tensor& tensor : *list) narrow(tensor);
    for (OptionalTensor* tensor : {&one.lengths, &one.reset, &one.reset_h, &one.reset_c})
      if (*tensor) narrow(**tensor);
    return one;
  }

  // Derives the sizes, checks everything, and makes inner strides 1 (weights: contiguous, member by member).
  void prepare() {
    directions = static_cast<int64_t>(weight_ih.size());
    STD_TORCH_CHECK(directions == 1 || directions == 2, "fusedlstm: expected 1 or 2 directions, got ", directions);
    const size_t d = weight_ih.size();
    STD_TORCH_CHECK(weight_hh.size() == d, "fusedlstm: expected ", d, " weight_hh, got ", weight_hh.size());
    for (const auto& [list, name] : {std::pair{&bias_ih, "bias_ih"}, {&bias_hh, "bias_hh"}, {&weight_hr, "weight_hr"}})
      STD_TORCH_CHECK(list->empty() || list->size() == d, "fusedlstm: expected 0 or ", d, " ", name, ", got ",
                      list->size());
    const int64_t input_dim = batch_sizes ? 2 : 3;
    lead = input.dim() - input_dim;
    STD_TORCH_CHECK(lead == 0 || lead == 1, "fusedlstm: expected ", batch_sizes ? "packed " : "", "input with ",
                    input_dim, " dimensions, or one more for an ensemble, got ", input.dim());
    if (lead > 0) members = input.size(0);
    STD_TORCH_CHECK(weight_hh[0].dim() == lead + 2 && weight_hh[0].size(lead) % 4 == 0,
                    "fusedlstm: expected weight_hh of size [", lead > 0 ? "members, " : "",
                    "4 * hidden_size, ...], got ", sizes_of(weight_hh[0]));
    dtype = input.scalar_type();
    input_facts = facts_of(input);
    check_memory(input, "input");
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16 ||
                        dtype == ScalarType::Half,
                    "fusedlstm: expected input of dtype float32, float64, bfloat16 or float16");
    hidden = weight_hh[0].size(lead) / 4;
    STD_TORCH_CHECK(hidden > 0, "fusedlstm: expected a positive hidden size, got ", hidden);
    if (!weight_hr.empty()) {
      STD_TORCH_CHECK(weight_hr[0].dim() == lead + 2 && weight_hr[0].size(lead) > 0,
                      "fusedlstm: expected weight_hr of size [", lead > 0 ? "members, " : "", "proj_size, ", hidden,
                      "], got ", sizes_of(weight_hr[0]));
      proj = weight_hr[0].size(lead);
    }
    if (batch_sizes) {
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
    } else {
      steps = input.size(lead);
      batch = input.size(lead + 1);
      features = input.size(lead + 2);
      rows = steps * batch;
    }
    like_input(h_0, {directions, batch, recurrent()}, "h_0");
    like_input(c_0, {directions, batch, hidden}, "c_0");
    for (size_t i = 0; i < d; ++i) {
      like_input(weight_ih[i], {4 * hidden, features}, "weight_ih");
      like_input(weight_hh[i], {4 * hidden, recurrent()}, "weight_hh");
      if (!bias_ih.empty()) like_input(bias_ih[i], {4 * hidden}, "bias_ih");
      if (!bias_hh.empty()) like_input(bias_hh[i], {4 * hidden}, "bias_hh");
      if (proj > 0) like_input(weight_hr[i], {proj, hidden}, "weight_hr");
      for (Tensors* list : {&weight_ih, &weight_hh, &bias_ih, &bias_hh, &weight_hr})
        if (!list->empty()) (*list)[i] = dense_after(lead, (*list)[i]);
    }
    if (reset_h) like_input(*reset_h, {directions, batch, recurrent()}, "reset_h");
    if (reset_c) like_input(*reset_c, {directions, batch, hidden}, "reset_c");
    if (lengths) {
      check_sizes(*lengths, each({batch}), "lengths");
      check_place(*lengths, "lengths");
      STD_TORCH_CHECK(lengths->scalar_type() == ScalarType::Long, "fusedlstm: expected lengths of dtype int64");
      lengths = dense(*lengths);
    }
    if (reset) {
      check_sizes(*reset, each({steps, batch}), "reset");
      check_place(*reset, "reset");
      STD_TORCH_CHECK(reset->scalar_type() == ScalarType::Bool, "fusedlstm: expected reset of dtype bool");
      STD_TORCH_CHECK(directions == 1, "fusedlstm: expected one direction with reset, got ", directions);
    }
    input = unit_stride(input);
    for (Tensor* state : {&h_0, &c_0}) *state = unit_stride(*state);
    for (OptionalTensor* state : {&reset_h, &reset_c})
      if (*state) *state = unit_stride(**state);
  }

  // Checks that t has, for each member, these sizes, and the dtype and device of the input.
  void like_input(const Tensor& t, const Sizes& sizes, const char* name) const {
    check_sizes(t, each(sizes), name);
    STD_TORCH_CHECK(facts_of(t).dtype == input_facts.dtype, "fusedlstm: expected ", name, " of the input's dtype");
    check_place(t, name);
  }
  // Checks that t is on the input's device, and has memory.
  void check_place(const Tensor& t, const char* name) const {
    const Facts facts = facts_of(t);
    STD_TORCH_CHECK(facts.device_type == input_facts.device_type && facts.device_index == input_facts.device_index,
                    "fusedlstm: expected ", name, " on the input's device");
    check_memory(t, name);
  }

  // In PyTorch's own codes: to translate the dtype takes up to ten calls more, for each tensor.
  struct Facts {
    int32_t dtype, device_type, device_index;
  };
  static Facts facts_of(const Tensor& t) {
    Facts facts{};
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &facts.dtype));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &facts.device_type));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(t.get(), &facts.device_index));
    return facts;
  }
  Facts input_facts{};
};

// The parameters that the bindings of all three operators share, in the order of the schema, and how they become
// LayerTensors.
#define FUSEDLSTM_LAYER_PARAMETERS                                                                              \
  Tensor input, Tensor h_0, Tensor c_0, Tensors weight_ih, Tensors weight_hh, Tensors bias_ih, Tensors bias_hh, \
      Tensors weight_hr, OptionalTensor batch_sizes, OptionalTensor lengths, OptionalTensor reset,              \
      OptionalTensor reset_h, OptionalTensor reset_c, [[maybe_unused]] bool allow_tf32
#define FUSEDLSTM_LAYER_TENSORS                                                                                   \
  {                                                                                                               \
      std::move(input),   std::move(h_0),     std::move(c_0),       std::move(weight_ih),   std::move(weight_hh), \
      std::move(bias_ih), std::move(bias_hh), std::move(weight_hr), std::move(batch_sizes), std::move(lengths),   \
      std::move(reset),   std::move(reset_h), std::move(reset_c),                                                 \
  }

// Positions in `needs` of lstm_layer_backward, which are those of its results.
enum Need { kInput, kH0, kC0, kWeightIh, kWeightHh, kBiasIh, kBiasHh, kWeightHr, kResetH, kResetC, kNeeds };

}  // namespace fusedlstm
