// The arguments of the layer operators as tensors, checked: what every device's binding starts from.
//
// The checks are the last line of defence: fusedlstm/functional.py has already raised what nn.LSTM would raise. They
// make sure that a direct call of the operator with wrong sizes, dtypes or devices is an exception and not a crash.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace fusedlstm {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Tensors = std::vector<Tensor>;

inline std::string to_string(std::initializer_list<int64_t> sizes) {
  std::string s = "[";
  for (const int64_t size : sizes) s += (s.size() > 1 ? ", " : "") + std::to_string(size);
  return s + "]";
}

inline std::string sizes_of(const Tensor& t) {
  std::string s = "[";
  for (int64_t i = 0; i < t.dim(); ++i) s += (i ? ", " : "") + std::to_string(t.size(i));
  return s + "]";
}

inline void check_sizes(const Tensor& t, std::initializer_list<int64_t> expected, const char* name) {
  bool same = t.dim() == static_cast<int64_t>(expected.size());
  int64_t i = 0;
  for (const int64_t size : expected) same = same && t.size(i++) == size;
  STD_TORCH_CHECK(same, "fusedlstm: expected ", name, " of size ", to_string(expected), ", got ", sizes_of(t));
}

// A new contiguous tensor on the device of `like`.
inline Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  int64_t strides[4];
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= sizes.begin()[i] > 0 ? sizes.begin()[i] : 1;
  }
  int32_t device_type, device_index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.begin(), strides,
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)), device_type, device_index, &handle));
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

// The tensor arguments that all three operators share; see library.cpp for the schema.
struct LayerTensors {
  Tensor input, h_0, c_0;
  Tensors weight_ih, weight_hh, bias_ih, bias_hh, weight_hr;
  OptionalTensor batch_sizes, lengths, reset, reset_h, reset_c;

  int64_t steps = 0, batch = 0, rows = 0, features = 0, hidden = 0, proj = 0, directions = 0;
  ScalarType dtype{};

  int64_t recurrent() const { return proj > 0 ? proj : hidden; }
  ScalarType acc_dtype() const { return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float; }

  // Derives the sizes, checks everything, and makes inner strides 1 (weights: contiguous).
  void prepare() {
    directions = static_cast<int64_t>(weight_ih.size());
    STD_TORCH_CHECK(directions == 1 || directions == 2, "fusedlstm: expected 1 or 2 directions, got ", directions);
    const size_t d = weight_ih.size();
    STD_TORCH_CHECK(weight_hh.size() == d, "fusedlstm: expected ", d, " weight_hh, got ", weight_hh.size());
    for (const auto& [list, name] : {std::pair{&bias_ih, "bias_ih"}, {&bias_hh, "bias_hh"}, {&weight_hr, "weight_hr"}})
      STD_TORCH_CHECK(list->empty() || list->size() == d, "fusedlstm: expected 0 or ", d, " ", name, ", got ",
                      list->size());
    STD_TORCH_CHECK(weight_hh[0].dim() == 2 && weight_hh[0].size(0) % 4 == 0,
                    "fusedlstm: expected weight_hh of size [4 * hidden_size, ...], got ", sizes_of(weight_hh[0]));
    dtype = input.scalar_type();
    input_facts = facts_of(input);
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16 ||
                        dtype == ScalarType::Half,
                    "fusedlstm: expected input of dtype float32, float64, bfloat16 or float16");
    hidden = weight_hh[0].size(0) / 4;
    STD_TORCH_CHECK(hidden > 0, "fusedlstm: expected a positive hidden size, got ", hidden);
    if (!weight_hr.empty()) {
      STD_TORCH_CHECK(weight_hr[0].dim() == 2 && weight_hr[0].size(0) > 0,
                      "fusedlstm: expected weight_hr of size [proj_size, ", hidden, "], got ", sizes_of(weight_hr[0]));
      proj = weight_hr[0].size(0);
    }
    if (batch_sizes) {
      STD_TORCH_CHECK(input.dim() == 2, "fusedlstm: expected packed input with 2 dimensions, got ", input.dim());
      STD_TORCH_CHECK(!lengths && !reset, "fusedlstm: expected no lengths and no reset with packed input");
      STD_TORCH_CHECK(batch_sizes->dim() == 1 && batch_sizes->size(0) > 0 && batch_sizes->is_cpu() &&
                          batch_sizes->scalar_type() == ScalarType::Long,
                      "fusedlstm: expected batch_sizes as a non-empty int64 vector on the CPU");
      batch_sizes = dense(*batch_sizes);
      const auto* sizes = batch_sizes->const_data_ptr<int64_t>();
      steps = batch_sizes->size(0);
      batch = sizes[0];
      for (int64_t t = 0; t < steps; ++t) {
        STD_TORCH_CHECK(sizes[t] > 0 && sizes[t] <= batch && (t == 0 || sizes[t] <= sizes[t - 1]),
                        "fusedlstm: expected positive, non-increasing batch_sizes, got ", sizes[t], " at step ", t);
        rows += sizes[t];
      }
      STD_TORCH_CHECK(input.size(0) == rows, "fusedlstm: expected ", rows, " packed rows, got ", input.size(0));
      features = input.size(1);
    } else {
      STD_TORCH_CHECK(input.dim() == 3, "fusedlstm: expected input with 3 dimensions, got ", input.dim());
      steps = input.size(0);
      batch = input.size(1);
      features = input.size(2);
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
        if (!list->empty()) (*list)[i] = dense((*list)[i]);
    }
    if (reset_h) like_input(*reset_h, {directions, batch, recurrent()}, "reset_h");
    if (reset_c) like_input(*reset_c, {directions, batch, hidden}, "reset_c");
    if (lengths) {
      check_sizes(*lengths, {batch}, "lengths");
      same_device(*lengths, "lengths");
      STD_TORCH_CHECK(lengths->scalar_type() == ScalarType::Long, "fusedlstm: expected lengths of dtype int64");
      lengths = dense(*lengths);
    }
    if (reset) {
      check_sizes(*reset, {steps, batch}, "reset");
      same_device(*reset, "reset");
      STD_TORCH_CHECK(reset->scalar_type() == ScalarType::Bool, "fusedlstm: expected reset of dtype bool");
      STD_TORCH_CHECK(directions == 1, "fusedlstm: expected one direction with reset, got ", directions);
    }
    input = unit_stride(input);
    for (Tensor* state : {&h_0, &c_0}) *state = unit_stride(*state);
    for (OptionalTensor* state : {&reset_h, &reset_c})
      if (*state) *state = unit_stride(**state);
  }

  // Checks that t has these sizes and the dtype and device of the input.
  void like_input(const Tensor& t, std::initializer_list<int64_t> sizes, const char* name) const {
    check_sizes(t, sizes, name);
    STD_TORCH_CHECK(facts_of(t).dtype == input_facts.dtype, "fusedlstm: expected ", name, " of the input's dtype");
    same_device(t, name);
  }
  void same_device(const Tensor& t, const char* name) const {
    const Facts facts = facts_of(t);
    STD_TORCH_CHECK(facts.device_type == input_facts.device_type && facts.device_index == input_facts.device_index,
                    "fusedlstm: expected ", name, " on the input's device");
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
