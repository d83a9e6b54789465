// The layer operators on CUDA: arguments checked, results allocated, and what torch is told of them.
#include <torch/csrc/stable/accelerator.h>

#include <cstdio>
#include <exception>
#include <stdexcept>

#include "cuda/host/layer.h"
#include "device_query.h"
#include "torch_host.h"

namespace fusedlstm::cuda {
namespace {

// Runs the body of an operator on a device. What it throws says so where the CUDA context is lost.
template <class Body>
auto on_device(int ordinal, Body body) {
  const torch::stable::accelerator::DeviceGuard guard(ordinal);
  try {
    return body();
  } catch (const std::exception& error) {
    const std::string text = lost_context(error.what(), ordinal);
    STD_TORCH_CHECK(text.empty(), text);
    // What Python would take for a ValueError.
    STD_TORCH_CHECK(!dynamic_cast<const std::invalid_argument*>(&error), error.what());
    throw;
  }
}

Tensor zeros(const Tensor& like, const Sizes& sizes, ScalarType dtype) {
  Tensor t = new_tensor(like, sizes, dtype);
  torch::stable::zero_(t);
  return t;
}

// What follows is views of tensors, as the host code takes them: they must not outlive the tensors.

View view_of(const OptionalTensor& tensor, Dtype dtype) {
  return tensor ? view_of(*tensor, dtype) : View();
}

void view_each(const Tensors& tensors, Dtype dtype, View* views) {
  for (const Tensor& tensor : tensors) *views++ = view_of(tensor, dtype);
}

Dtype acc_dtype(const LayerTensors& t) {
  return dtype_of(t.acc_dtype());
}

// Of prepared tensors.
Layer layer_of(const LayerTensors& t, bool allow_tf32) {
  Layer layer{};
  layer.dtype = dtype_of(t.dtype);
  layer.allow_tf32 = allow_tf32;
  layer.is_ensemble = t.lead > 0;
  layer.members = t.members;
  layer.steps = t.steps;
  layer.batch = t.batch;
  layer.rows = t.rows;
  layer.features = t.features;
  layer.hidden = t.hidden;
  layer.proj = t.proj;
  layer.directions = t.directions;
  layer.batch_sizes = t.batch_sizes ? t.batch_sizes->const_data_ptr<int64_t>() : nullptr;
  layer.input = view_of(t.input, layer.dtype);
  layer.h_0 = view_of(t.h_0, layer.dtype);
  layer.c_0 = view_of(t.c_0, layer.dtype);
  view_each(t.weight_ih, layer.dtype, layer.weight_ih);
  view_each(t.weight_hh, layer.dtype, layer.weight_hh);
  view_each(t.bias_ih, layer.dtype, layer.bias_ih);
  view_each(t.bias_hh, layer.dtype, layer.bias_hh);
  view_each(t.weight_hr, layer.dtype, layer.weight_hr);
  layer.lengths = t.lengths ? t.lengths->const_data_ptr<int64_t>() : nullptr;
  layer.reset = t.reset ? t.reset->const_data_ptr<bool>() : nullptr;
  layer.reset_h = view_of(t.reset_h, layer.dtype);
  layer.reset_c = view_of(t.reset_c, layer.dtype);
  return layer;
}

void prepare(LayerTensors& t) {
  t.prepare();
  if (t.reset) t.reset = dense(*t.reset);
}

struct Forward {
  Tensor output, h_n, c_n, gates, cell_states;
};

Forward forward(LayerTensors t, bool allow_tf32, bool training) {
  prepare(t);
  const int64_t D = t.directions;
  const auto new_rows = [&](const Sizes& sizes, ScalarType dtype) {
    return t.lengths ? zeros(t.input, t.each(sizes), dtype) : new_tensor(t.input, t.each(sizes), dtype);
  };
  Forward r;
  r.output = new_rows(t.row_sizes(D * t.recurrent()), t.dtype);
  r.h_n = new_tensor(t.input, t.each({D, t.batch, t.recurrent()}), t.dtype);
  r.c_n = new_tensor(t.input, t.each({D, t.batch, t.hidden}), t.dtype);
  if (training) {
    r.gates = new_rows({D, t.rows, 4 * t.hidden}, t.dtype);
    r.cell_states = new_rows({D, t.rows, t.hidden}, t.acc_dtype());
  }
  TorchHost host(t.input.get_device());
  const Layer layer = layer_of(t, allow_tf32);
  run_forward(host, layer,
              {.output = view_of(r.output, layer.dtype),
               .h_n = view_of(r.h_n, layer.dtype),
               .c_n = view_of(r.c_n, layer.dtype),
               .gates = view_of(r.gates, layer.dtype),
               .cell_states = view_of(r.cell_states, acc_dtype(t))});
  return r;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_layer(FUSEDLSTM_LAYER_PARAMETERS) {
  return on_device(input.get_device(), [&] {
    Forward r = forward(FUSEDLSTM_LAYER_TENSORS, allow_tf32, true);
    return std::tuple{r.output, r.h_n, r.c_n, r.gates, r.cell_states};
  });
}

std::tuple<Tensor, Tensor, Tensor> lstm_layer_inference(FUSEDLSTM_LAYER_PARAMETERS) {
  return on_device(input.get_device(), [&] {
    Forward r = forward(FUSEDLSTM_LAYER_TENSORS, allow_tf32, false);
    return std::tuple{r.output, r.h_n, r.c_n};
  });
}

// What lstm_layer_backward is given beside the layer.
struct Backward {
  OptionalTensor d_output, d_h_n, d_c_n, d_cell_states;
  Tensor output, gates, cell_states;
  std::vector<bool> needs;
};

void check(const LayerTensors& t, Backward& b) {
  STD_TORCH_CHECK(b.needs.size() == kNeeds, "fusedlstm: expected ", int(kNeeds), " needs, got ", b.needs.size());
  const int64_t D = t.directions;
  const auto check_cells = [&](const Tensor& cells, const char* name) {
    check_sizes(cells, t.each({D, t.rows, t.hidden}), name);
    STD_TORCH_CHECK(cells.scalar_type() == t.acc_dtype(), "fusedlstm: expected ", name, " of the accumulation dtype");
    t.check_place(cells, name);
  };
  t.like_input(b.output, t.row_sizes(D * t.recurrent()), "output");
  t.like_input(b.gates, {D, t.rows, 4 * t.hidden}, "gates");
  check_cells(b.cell_states, "cell_states");
  if (b.d_output) {
    t.like_input(*b.d_output, t.row_sizes(D * t.recurrent()), "d_output");
    b.d_output = unit_stride(*b.d_output);
  }
  if (b.d_h_n) t.like_input(*b.d_h_n, {D, t.batch, t.recurrent()}, "d_h_n");
  if (b.d_c_n) t.like_input(*b.d_c_n, {D, t.batch, t.hidden}, "d_c_n");
  if (b.d_cell_states) check_cells(*b.d_cell_states, "d_cell_states");
  for (OptionalTensor* grad : {&b.d_h_n, &b.d_c_n, &b.d_cell_states})
    if (*grad) *grad = dense_after(t.lead, **grad);
  for (Tensor* saved : {&b.output, &b.gates, &b.cell_states}) *saved = dense_after(t.lead, *saved);
}

using AllGradients = std::tuple<Tensor, Tensor, Tensor, Tensors, Tensors, Tensors, Tensors, Tensors, Tensor, Tensor>;

AllGradients backward(LayerTensors t, bool allow_tf32, Backward b) {
  prepare(t);
  check(t, b);
  const int64_t D = t.directions;
  // Of size 0 where it is not needed. Zeros where there is nothing to run; otherwise every element is written.
  const auto result = [&](bool needed, const Sizes& sizes) {
    if (!needed) return new_tensor(t.input, {0}, t.dtype);
    return t.rows == 0 ? zeros(t.input, t.each(sizes), t.dtype) : new_tensor(t.input, t.each(sizes), t.dtype);
  };
  const auto results = [&](Need need, const Tensors& arguments, const Sizes& sizes) {
    Tensors all;
    for (size_t d = 0; d < arguments.size(); ++d) all.push_back(result(b.needs[need], sizes));
    return all;
  };
  AllGradients all{result(b.needs[kInput], t.row_sizes(t.features)),
                   result(b.needs[kH0], {D, t.batch, t.recurrent()}),
                   result(b.needs[kC0], {D, t.batch, t.hidden}),
                   results(kWeightIh, t.weight_ih, {4 * t.hidden, t.features}),
                   results(kWeightHh, t.weight_hh, {4 * t.hidden, t.recurrent()}),
                   results(kBiasIh, t.bias_ih, {4 * t.hidden}),
                   results(kBiasHh, t.bias_hh, {4 * t.hidden}),
                   results(kWeightHr, t.weight_hr, {t.proj, t.hidden}),
                   result(b.needs[kResetH] && t.reset_h, {D, t.batch, t.recurrent()}),
                   result(b.needs[kResetC] && t.reset_c, {D, t.batch, t.hidden})};

  const Layer layer = layer_of(t, allow_tf32);
  Gradients grads;
  grads.input = view_of(std::get<kInput>(all), layer.dtype);
  grads.h_0 = view_of(std::get<kH0>(all), layer.dtype);
  grads.c_0 = view_of(std::get<kC0>(all), layer.dtype);
  view_each(std::get<kWeightIh>(all), layer.dtype, grads.weight_ih);
  view_each(std::get<kWeightHh>(all), layer.dtype, grads.weight_hh);
  view_each(std::get<kBiasIh>(all), layer.dtype, grads.bias_ih);
  view_each(std::get<kBiasHh>(all), layer.dtype, grads.bias_hh);
  view_each(std::get<kWeightHr>(all), layer.dtype, grads.weight_hr);
  grads.reset_h = view_of(std::get<kResetH>(all), layer.dtype);
  grads.reset_c = view_of(std::get<kResetC>(all), layer.dtype);
  TorchHost host(t.input.get_device());
  run_backward(host, layer,
               {.output = view_of(b.output, layer.dtype),
                .gates = view_of(b.gates, layer.dtype),
                .cell_states = view_of(b.cell_states, acc_dtype(t)),
                .d_output = view_of(b.d_output, layer.dtype),
                .d_h_n = view_of(b.d_h_n, layer.dtype),
                .d_c_n = view_of(b.d_c_n, layer.dtype),
                .d_cell_states = view_of(b.d_cell_states, acc_dtype(t))},
               grads);
  return all;
}

AllGradients lstm_layer_backward(OptionalTensor d_output, OptionalTensor d_h_n, OptionalTensor d_c_n,
                                 OptionalTensor d_cell_states, FUSEDLSTM_LAYER_PARAMETERS, Tensor output, Tensor gates,
                                 Tensor cell_states, std::vector<bool> needs) {
  return on_device(input.get_device(), [&] {
    return backward(FUSEDLSTM_LAYER_TENSORS, allow_tf32,
                    {d_output, d_h_n, d_c_n, d_cell_states, output, gates, cell_states, needs});
  });
}

// Why no kernel of this library can run on a device, or "".
std::string cuda_obstacle(int64_t ordinal) {
  return on_device(static_cast<int>(ordinal), [&] {
    Device device{};
    const cudaError_t error = query_device(static_cast<int>(ordinal), device);
    return error == cudaSuccess ? std::string() : failure_text("device " + std::to_string(ordinal), error);
  });
}

}  // namespace

// Here and not with the other schemas, since it exists only where this library is loaded. For the `catch` see there.
STABLE_TORCH_LIBRARY_FRAGMENT(fusedlstm, m) {
  try {
    m.def("_cuda_obstacle(int ordinal) -> str");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "fusedlstm: its CUDA operators could not be defined (%s)\n", error.what());
  }
}

STABLE_TORCH_LIBRARY_IMPL(fusedlstm, CompositeExplicitAutograd, m) {
  m.impl("_cuda_obstacle", TORCH_BOX(&cuda_obstacle));
}

STABLE_TORCH_LIBRARY_IMPL(fusedlstm, CUDA, m) {
  m.impl("lstm_layer", TORCH_BOX(&lstm_layer));
  m.impl("lstm_layer_inference", TORCH_BOX(&lstm_layer_inference));
  m.impl("lstm_layer_backward", TORCH_BOX(&lstm_layer_backward));
}

}  // namespace fusedlstm::cuda
