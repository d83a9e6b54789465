// The layer operators on CUDA: arguments checked, results allocated, and what torch is told of them.
#include <iterator>

#include "call/checked_steps.h"
#include "call/implement.h"
#include "call/results.h"
#include "cells/all.h"
#include "cuda/host/layer.h"
#include "cuda/host/second_order.h"
#include "on_device.h"
#include "torch_host.h"

namespace fusedlstm::cuda {
namespace {

// What follows is views of tensors, as the host code takes them: they must not outlive the tensors.

Dtype acc_dtype(const CheckedLayer& t) {
  return dtype_of(t.acc_dtype());
}

Layer layer_of(const NamedCell& cell, const CheckedLayer& t) {
  Layer layer{};
  layer.cell = cell;
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
  view_each(t.initial, layer.dtype, layer.initial);
  view_each(t.weight_ih, layer.dtype, layer.weight_ih);
  view_each(t.weight_hh, layer.dtype, layer.weight_hh);
  view_each(t.bias_ih, layer.dtype, layer.bias_ih);
  view_each(t.bias_hh, layer.dtype, layer.bias_hh);
  view_each(t.weight_hr, layer.dtype, layer.weight_hr);
  layer.lengths = t.lengths ? t.lengths->const_data_ptr<int64_t>() : nullptr;
  layer.reset = t.reset ? t.reset->const_data_ptr<bool>() : nullptr;
  view_each(t.reset_state, layer.dtype, layer.reset_state);
  return layer;
}

// With `reset` dense, as the kernels read it.
CheckedLayer checked(const NamedCell& cell, LayerArguments& arguments) {
  CheckedLayer t(std::move(arguments), cell.sizes);
  if (t.reset) t.reset = dense(*t.reset);
  return t;
}

LayerResults forward(const NamedCell& cell, LayerArguments& arguments, bool is_training) {
  const CheckedLayer t = checked(cell, arguments);
  LayerResults r = new_results(t, is_training, t.lengths.has_value());
  TorchHost host(t.input.get_device());
  const Layer layer = layer_of(cell, t);
  ForwardResults results;
  results.output = view_of(r.output, layer.dtype);
  view_each(r.last, layer.dtype, results.last);
  results.saved = view_of(r.saved, layer.dtype);
  results.carried = view_of(r.carried, acc_dtype(t));
  run_forward(host, layer, results);
  return r;
}

LayerGradients backward(const NamedCell& cell, BackwardArguments& arguments) {
  const CheckedLayer t = checked(cell, arguments.layer);
  CheckedIncoming in(arguments, t);
  for (OptionalTensor& d : in.d_last)
    if (d) d = dense_after(t.lead, *d);
  LayerGradients g = new_gradients(t, arguments.needs);
  const Layer layer = layer_of(cell, t);
  Gradients grads;
  grads.input = view_of(g.input, layer.dtype);
  view_each(g.initial, layer.dtype, grads.initial);
  view_each(g.weight_ih, layer.dtype, grads.weight_ih);
  view_each(g.weight_hh, layer.dtype, grads.weight_hh);
  view_each(g.bias_ih, layer.dtype, grads.bias_ih);
  view_each(g.bias_hh, layer.dtype, grads.bias_hh);
  view_each(g.weight_hr, layer.dtype, grads.weight_hr);
  view_each(g.reset_state, layer.dtype, grads.reset_state);
  Incoming incoming;
  incoming.output = view_of(in.output, layer.dtype);
  incoming.saved = view_of(in.saved, layer.dtype);
  incoming.carried = view_of(in.carried, acc_dtype(t));
  incoming.d_output = view_of(in.d_output, layer.dtype);
  view_each(in.d_last, layer.dtype, incoming.d_last);
  incoming.d_carried = view_of(in.d_carried, acc_dtype(t));
  TorchHost host(t.input.get_device());
  run_backward(host, layer, incoming, grads);
  return g;
}

template <int kCell>
LayerResults layer(LayerArguments& arguments) {
  return on_device(arguments.input.get_device(), [&] { return forward(kCells[kCell], arguments, true); });
}

template <int kCell>
InferenceResults layer_inference(LayerArguments& arguments) {
  return on_device(arguments.input.get_device(), [&] {
    LayerResults r = forward(kCells[kCell], arguments, false);
    return InferenceResults{r.output, r.last};
  });
}

template <int kCell>
LayerGradients layer_backward(BackwardArguments& arguments) {
  return on_device(arguments.layer.input.get_device(), [&] { return backward(kCells[kCell], arguments); });
}

template <int kCell>
StepsResults steps_second_order(StepsArguments& arguments) {
  return on_device(arguments.saved.get_device(), [&] {
    const NamedCell& cell = kCells[kCell];
    const CheckedSteps t(std::move(arguments), cell.sizes);
    const StepsResults r = new_results(t);
    const TorchHost host(t.saved.get_device());
    check(launch_second_order(cell.kind, dtype_of(t.dtype), args_of(t, r, cell.is_relu), host.stream), "second order");
    return r;
  });
}

// The operators of a cell, and of those after it.
template <int kCell = 0>
void implement_from(torch::stable::detail::StableLibrary& m) {
  if constexpr (kCell < static_cast<int>(std::size(kCells))) {
    implement<kCell, layer<kCell>, layer_inference<kCell>, layer_backward<kCell>, steps_second_order<kCell>>(m);
    implement_from<kCell + 1>(m);
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(FUSEDLSTM_NAMESPACE, CUDA, m) {
  implement_from(m);
}

}  // namespace fusedlstm::cuda
