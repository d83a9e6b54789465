// The layer operators on CUDA: arguments checked, results allocated, and what torch is told of them.
#include "operators.h"

#include <iterator>
#include <utility>
#include <vector>

#include "call/checked_steps.h"
#include "call/implement.h"
#include "call/results.h"
#include "cells/all.h"
#include "cuda/host/layer.h"
#include "cuda/host/second_order.h"
#include "cuda/host/stack.h"
#include "on_device.h"
#include "torch_host.h"

namespace fusedlstm::cuda {
namespace {

// What follows is views of tensors, as the host code takes them: they must not outlive the tensors.

Dtype acc_dtype(const CheckedLayer& t) {
  return dtype_of(t.acc_dtype());
}

// This layer's part of a tensor of all layers of its stack; what has no elements since nobody needs it as it is.
View own_view(const CheckedLayer& t, const Tensor& tensor, Dtype dtype) {
  View view = view_of(tensor, dtype);
  if (t.layers() == 1 || view.dimensions < 3) return view;
  view.sizes[0] = t.directions;
  if (view.data)
    view.data =
        static_cast<char*>(view.data) + t.first_row() * view.strides[0] * static_cast<int64_t>(element_bytes(dtype));
  return view;
}
View own_view(const CheckedLayer& t, const OptionalTensor& tensor, Dtype dtype) {
  return tensor ? own_view(t, *tensor, dtype) : View();
}
template <class SomeTensors>
void own_views(const CheckedLayer& t, const SomeTensors& tensors, Dtype dtype, View* views) {
  for (const auto& tensor : tensors) *views++ = own_view(t, tensor, dtype);
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
  own_views(t, t.states(), layer.dtype, layer.initial);
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

// A call of a layer: its tensors, with new ones for the results, and views of them.

struct ForwardCall {
  CheckedLayer t;
  LayerResults r;
  Layer layer;
  ForwardResults results;

  ForwardCall(const NamedCell& cell, LayerArguments& arguments, bool is_training)
      : t(checked(cell, arguments)), r(new_results(t, is_training, t.lengths.has_value())), layer(layer_of(cell, t)) {
    results.output = view_of(r.output, layer.dtype);
    own_views(t, last_states(t, r), layer.dtype, results.last);
    results.saved = own_view(t, r.saved, layer.dtype);
    results.carried = own_view(t, r.carried, acc_dtype(t));
  }
};

struct BackwardCall {
  CheckedLayer t;
  CheckedIncoming in;
  LayerGradients g;
  Layer layer;
  Incoming incoming;
  Gradients grads;

  BackwardCall(const NamedCell& cell, BackwardArguments& arguments)
      : t(checked(cell, arguments.layer)),
        in(arguments, t),
        g(new_gradients(t, arguments.needs)),
        layer(layer_of(cell, t)) {
    for (OptionalTensor& d : in.d_last)
      if (d) d = dense_after(t.lead, *d);
    grads.input = view_of(g.input, layer.dtype);
    own_views(t, g.initial, layer.dtype, grads.initial);
    view_each(g.weight_ih, layer.dtype, grads.weight_ih);
    view_each(g.weight_hh, layer.dtype, grads.weight_hh);
    view_each(g.bias_ih, layer.dtype, grads.bias_ih);
    view_each(g.bias_hh, layer.dtype, grads.bias_hh);
    view_each(g.weight_hr, layer.dtype, grads.weight_hr);
    view_each(g.reset_state, layer.dtype, grads.reset_state);
    incoming.output = view_of(in.output, layer.dtype);
    incoming.saved = own_view(t, in.saved, layer.dtype);
    incoming.carried = own_view(t, in.carried, acc_dtype(t));
    incoming.d_output = view_of(in.d_output, layer.dtype);
    own_views(t, in.d_last, layer.dtype, incoming.d_last);
    incoming.d_carried = view_of(in.d_carried, acc_dtype(t));
  }
};

LayerResults forward(const NamedCell& cell, LayerArguments& arguments, bool is_training) {
  ForwardCall call(cell, arguments, is_training);
  TorchHost host(call.t.input.get_device());
  run_forward(host, call.layer, call.results);
  return std::move(call.r);
}

LayerGradients backward(const NamedCell& cell, BackwardArguments& arguments) {
  BackwardCall call(cell, arguments);
  TorchHost host(call.t.input.get_device());
  run_backward(host, call.layer, call.incoming, call.grads);
  return std::move(call.g);
}

// ---- the layers of a stack ------------------------------------------------------------------------------------------

// One member of each call.
template <class Calls, class Call, class T>
std::vector<T> of_each(const Calls& calls, T Call::*member) {
  std::vector<T> all;
  for (const Call& call : calls) all.push_back(call.*member);
  return all;
}

// Layers on top of those of `calls`, until these are so many or there are no more.
void call_next(const NamedCell& cell, std::vector<LayerArguments>& layers, size_t& next, size_t most, bool is_training,
               std::vector<ForwardCall>& calls) {
  for (; next < layers.size() && calls.size() < most; ++next) {
    if (!calls.empty()) layers[next].input = calls.back().r.output;
    calls.emplace_back(cell, layers[next], is_training);
  }
}

std::vector<LayerResults> forward(const NamedCell& cell, std::vector<LayerArguments> layers) {
  std::vector<ForwardCall> calls;
  size_t next = 0;
  call_next(cell, layers, next, layers.size(), true, calls);
  TorchHost host(calls[0].t.input.get_device());
  Choice choice = choose(host, calls[0].layer, Pass::kForward, layers.size());
  run_forward(host, of_each(calls, &ForwardCall::layer), of_each(calls, &ForwardCall::results), choice);
  return of_each(calls, &ForwardCall::r);
}

// What the layers put out is kept only as long as layers that run abreast need it.
Tensor forward_inference(const NamedCell& cell, std::vector<LayerArguments> layers) {
  std::vector<ForwardCall> calls;
  size_t next = 0;
  call_next(cell, layers, next, 1, false, calls);
  TorchHost host(calls[0].t.input.get_device());
  Choice choice = choose(host, calls[0].layer, Pass::kForward, layers.size());
  for (;;) {
    call_next(cell, layers, next, static_cast<size_t>(choice.plan.abreast), false, calls);
    run_forward(host, of_each(calls, &ForwardCall::layer), of_each(calls, &ForwardCall::results), choice);
    if (next == layers.size()) return calls.back().r.output;
    layers[next].input = calls.back().r.output;
    calls.clear();
    call_next(cell, layers, next, 1, false, calls);
  }
}

// The uppermost first.
std::vector<LayerGradients> backward(const NamedCell& cell, std::vector<BackwardArguments>& layers) {
  std::vector<BackwardCall> calls;
  for (BackwardArguments& arguments : layers) {
    if (&arguments != &layers.back()) arguments.needs[kInput] = false;  // the host has memory for it
    calls.emplace_back(cell, arguments);
  }
  TorchHost host(calls[0].t.input.get_device());
  Choice choice = choose(host, calls[0].layer, Pass::kBackward, calls.size());
  run_backward(host, of_each(calls, &BackwardCall::layer), of_each(calls, &BackwardCall::incoming),
               of_each(calls, &BackwardCall::grads), choice);
  return of_each(calls, &BackwardCall::g);
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
std::vector<LayerResults> layers(Stack& stack) {
  return on_device(stack.device(), [&] { return forward(kCells[kCell], layers_of(stack)); });
}

template <int kCell>
Tensor layers_inference(Stack& stack) {
  return on_device(stack.device(), [&] { return forward_inference(kCells[kCell], layers_of(stack)); });
}

template <int kCell>
std::vector<LayerGradients> layers_backward(std::vector<BackwardArguments>& arguments) {
  return on_device(arguments[0].layer.input.get_device(), [&] { return backward(kCells[kCell], arguments); });
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
    implement<kCell, layer<kCell>, layer_inference<kCell>, layer_backward<kCell>, steps_second_order<kCell>,
              layers<kCell>, layers_inference<kCell>, layers_backward<kCell>>(m);
    implement_from<kCell + 1>(m);
  }
}

}  // namespace

void implement_layers(torch::stable::detail::StableLibrary& m) {
  implement_from(m);
}

}  // namespace fusedlstm::cuda
