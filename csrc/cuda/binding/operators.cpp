// The layer operators on CUDA: arguments checked, results allocated, and what torch is told of them.
#include <torch/csrc/stable/accelerator.h>

#include <cstdio>
#include <exception>
#include <stdexcept>

#include "call/one_step.h"
#include "call/results.h"
#include "cells/lstm.h"
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

// What follows is views of tensors, as the host code takes them: they must not outlive the tensors.

View view_of(const OptionalTensor& tensor, Dtype dtype) {
  return tensor ? view_of(*tensor, dtype) : View();
}

void view_each(const Tensors& tensors, Dtype dtype, View* views) {
  for (const Tensor& tensor : tensors) *views++ = view_of(tensor, dtype);
}

// Of a list of states that may be empty.
View view_of(const Tensors& states, size_t index, Dtype dtype) {
  return states.empty() ? View() : view_of(states[index], dtype);
}

Dtype acc_dtype(const CheckedLayer& t) {
  return dtype_of(t.acc_dtype());
}

Layer layer_of(const CheckedLayer& t) {
  Layer layer{};
  layer.dtype = dtype_of(t.dtype);
  layer.allow_tf32 = t.allow_tf32;
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
  layer.h_0 = view_of(t.initial, 0, layer.dtype);
  layer.c_0 = view_of(t.initial, 1, layer.dtype);
  view_each(t.weight_ih, layer.dtype, layer.weight_ih);
  view_each(t.weight_hh, layer.dtype, layer.weight_hh);
  view_each(t.bias_ih, layer.dtype, layer.bias_ih);
  view_each(t.bias_hh, layer.dtype, layer.bias_hh);
  view_each(t.weight_hr, layer.dtype, layer.weight_hr);
  layer.lengths = t.lengths ? t.lengths->const_data_ptr<int64_t>() : nullptr;
  layer.reset = t.reset ? t.reset->const_data_ptr<bool>() : nullptr;
  layer.reset_h = view_of(t.reset_state, 0, layer.dtype);
  layer.reset_c = view_of(t.reset_state, 1, layer.dtype);
  return layer;
}

// With `reset` dense, as the kernels read it.
CheckedLayer checked(LayerArguments& arguments) {
  CheckedLayer t(std::move(arguments), Lstm::kSizes);
  if (t.reset) t.reset = dense(*t.reset);
  return t;
}

LayerResults forward(LayerArguments& arguments, bool is_training) {
  const CheckedLayer t = checked(arguments);
  LayerResults r = new_results(t, is_training, t.lengths.has_value());
  TorchHost host(t.input.get_device());
  const Layer layer = layer_of(t);
  run_forward(host, layer,
              {.output = view_of(r.output, layer.dtype),
               .h_n = view_of(r.last, 0, layer.dtype),
               .c_n = view_of(r.last, 1, layer.dtype),
               .gates = view_of(r.saved, layer.dtype),
               .cell_states = view_of(r.carried, acc_dtype(t))});
  return r;
}

LayerResults layer(LayerArguments& arguments) {
  return on_device(arguments.input.get_device(), [&] { return forward(arguments, true); });
}

InferenceResults layer_inference(LayerArguments& arguments) {
  return on_device(arguments.input.get_device(), [&] {
    LayerResults r = forward(arguments, false);
    return InferenceResults{r.output, r.last};
  });
}

LayerGradients backward(BackwardArguments& arguments) {
  const CheckedLayer t = checked(arguments.layer);
  CheckedIncoming in(arguments, t);
  for (OptionalTensor& d : in.d_last)
    if (d) d = dense_after(t.lead, *d);
  LayerGradients g = new_gradients(t, arguments.needs);
  const Layer layer = layer_of(t);
  Gradients grads;
  grads.input = view_of(g.input, layer.dtype);
  grads.h_0 = view_of(g.initial, 0, layer.dtype);
  grads.c_0 = view_of(g.initial, 1, layer.dtype);
  view_each(g.weight_ih, layer.dtype, grads.weight_ih);
  view_each(g.weight_hh, layer.dtype, grads.weight_hh);
  view_each(g.bias_ih, layer.dtype, grads.bias_ih);
  view_each(g.bias_hh, layer.dtype, grads.bias_hh);
  view_each(g.weight_hr, layer.dtype, grads.weight_hr);
  grads.reset_h = view_of(g.reset_state, 0, layer.dtype);
  grads.reset_c = view_of(g.reset_state, 1, layer.dtype);
  TorchHost host(t.input.get_device());
  run_backward(host, layer,
               {.output = view_of(in.output, layer.dtype),
                .gates = view_of(in.saved, layer.dtype),
                .cell_states = view_of(in.carried, acc_dtype(t)),
                .d_output = view_of(in.d_output, layer.dtype),
                .d_h_n = view_of(in.d_last[0], layer.dtype),
                .d_c_n = view_of(in.d_last[1], layer.dtype),
                .d_cell_states = view_of(in.d_carried, acc_dtype(t))},
               grads);
  return g;
}

LayerGradients layer_backward(BackwardArguments& arguments) {
  return on_device(arguments.layer.input.get_device(), [&] { return backward(arguments); });
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
  implement<layer, layer_inference, layer_backward>(m, "lstm");
}

}  // namespace fusedlstm::cuda
