// The layer operators on CUDA: arguments checked, results allocated, and what torch is told of them.
#include <torch/csrc/stable/accelerator.h>

#include <cstdio>
#include <exception>

#include "device_query.h"
#include "layer.h"
#include "tensor_ops.h"

namespace fusedlstm::gpu {
namespace {

using DeviceGuard = torch::stable::accelerator::DeviceGuard;

// Whether all members of an ensemble are run by one launch; else they run one after another.
bool runs_at_once(const LayerTensors& t, bool allow_tf32, Pass pass) {
  constexpr int64_t kMostMembers = 65535;  // blocks of a grid in that dimension
  const int64_t rows = t.members * t.directions * t.rows;
  if (t.lead == 0 || rows == 0 || !is_int(rows) || t.members > kMostMembers) return false;
  return choose(problem_of(t, allow_tf32, pass), t.input.get_device()).plan.members == t.members;
}

ForwardResults forward(LayerTensors t, bool allow_tf32, bool training) {
  t.prepare();
  const int64_t D = t.directions;
  const auto new_rows = [&](const Sizes& sizes, ScalarType dtype) {
    return t.lengths ? zeros(t.input, t.each(sizes), dtype) : new_tensor(t.input, t.each(sizes), dtype);
  };
  ForwardResults r;
  r.output = new_rows(t.row_sizes(D * t.recurrent()), t.dtype);
  r.h_n = new_tensor(t.input, t.each({D, t.batch, t.recurrent()}), t.dtype);
  r.c_n = new_tensor(t.input, t.each({D, t.batch, t.hidden}), t.dtype);
  if (training) {
    r.gates = new_rows({D, t.rows, 4 * t.hidden}, t.dtype);
    r.cell_states = new_rows({D, t.rows, t.hidden}, t.acc_dtype());
  }
  if (runs_at_once(t, allow_tf32, Pass::kForward) && run_forward(Layer(t, allow_tf32), r)) return r;
  for (int64_t m = 0; m < t.members; ++m) {
    ForwardResults own{member_of(t, r.output, m), member_of(t, r.h_n, m), member_of(t, r.c_n, m),
                       member_of(t, r.gates, m), member_of(t, r.cell_states, m)};
    run_forward(Layer(t.member(m), allow_tf32), own);
  }
  return r;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_layer(FUSEDLSTM_LAYER_PARAMETERS) {
  const DeviceGuard guard(input.get_device_index());
  ForwardResults r = forward(FUSEDLSTM_LAYER_TENSORS, allow_tf32, true);
  return {r.output, r.h_n, r.c_n, r.gates, r.cell_states};
}

std::tuple<Tensor, Tensor, Tensor> lstm_layer_inference(FUSEDLSTM_LAYER_PARAMETERS) {
  const DeviceGuard guard(input.get_device_index());
  ForwardResults r = forward(FUSEDLSTM_LAYER_TENSORS, allow_tf32, false);
  return {r.output, r.h_n, r.c_n};
}

// What lstm_layer_backward is given beside the layer.
struct Incoming {
  OutputGradients d;
  Tensor output, gates, cell_states;
};

Incoming of_member(const LayerTensors& t, const Incoming& in, int64_t m) {
  const auto one = [&](const OptionalTensor& d) { return d ? OptionalTensor(member_of(t, *d, m)) : d; };
  return {{one(in.d.output), one(in.d.h_n), one(in.d.c_n), one(in.d.cell_states)},
          member_of(t, in.output, m),
          member_of(t, in.gates, m),
          member_of(t, in.cell_states, m)};
}

Gradients of_member(const LayerTensors& t, const Gradients& grads, int64_t m) {
  const auto one = [&](const Tensor& all) { return member_of(t, all, m); };
  const auto each = [&](const Tensors& all) {
    Tensors own;
    for (const Tensor& tensor : all) own.push_back(one(tensor));
    return own;
  };
  return {one(grads.input),    one(grads.h_0),      one(grads.c_0),        each(grads.weight_ih), each(grads.weight_hh),
          each(grads.bias_ih), each(grads.bias_hh), each(grads.weight_hr), one(grads.reset_h),    one(grads.reset_c)};
}

BackwardRecurrence of_member(const LayerTensors& t, const BackwardRecurrence& r, int64_t m) {
  return {member_of(t, r.d_gates, m), member_of(t, r.d_projected, m), member_of(t, r.d_reset_h, m),
          member_of(t, r.d_reset_c, m)};
}

// The recurrence, with the gradients of the initial state.
std::optional<BackwardRecurrence> recur(const Layer& layer, const Incoming& in, const std::vector<bool>& needs,
                                        const Gradients& grads) {
  const LayerTensors& t = layer.t;
  const auto written = [&](bool needed, const Tensor& gradient, int64_t size) {
    return needed ? gradient : new_tensor(t.input, t.each({t.directions, t.batch, size}), t.dtype);
  };
  return run_backward(layer, in.d, in.gates, in.cell_states, written(needs[kH0], grads.h_0, t.recurrent()),
                      written(needs[kC0], grads.c_0, t.hidden));
}

// The other gradients of one layer or member, from those of the recurrence.
void finish(const Layer& layer, const BackwardRecurrence& r, const Incoming& in, const std::vector<bool>& needs,
            Gradients grads) {
  const LayerTensors& t = layer.t;
  finish_gradients(layer, r, in.output, in.gates, in.cell_states, needs, grads);
  const auto finish_reset = [&](bool needed, Tensor& gradient, const Tensor& sum) {
    if (needed) t.reset ? torch::stable::copy_(gradient, sum) : torch::stable::zero_(gradient);
  };
  finish_reset(needs[kResetH] && t.reset_h, grads.reset_h, r.d_reset_h);
  finish_reset(needs[kResetC] && t.reset_c, grads.reset_c, r.d_reset_c);
}

// All gradients, into `grads`.
void backward(const LayerTensors& t, bool allow_tf32, Incoming in, const std::vector<bool>& needs, Gradients& grads) {
  if (t.rows == 0) {
    // The gradients that were allocated are zeros.
    if (needs[kH0] && in.d.h_n) torch::stable::copy_(grads.h_0, *in.d.h_n);
    if (needs[kC0] && in.d.c_n) torch::stable::copy_(grads.c_0, *in.d.c_n);
    return;
  }
  std::optional<BackwardRecurrence> all;
  if (runs_at_once(t, allow_tf32, Pass::kBackward)) {
    for (OptionalTensor* grad : {&in.d.output, &in.d.h_n, &in.d.c_n, &in.d.cell_states})
      if (*grad) *grad = dense(**grad);
    for (Tensor* saved : {&in.gates, &in.cell_states}) *saved = dense(*saved);
    all = recur(Layer(t, allow_tf32), in, needs, grads);
  }
  for (int64_t m = 0; m < t.members; ++m) {
    const Layer layer(t.member(m), allow_tf32);
    const Incoming own = of_member(t, in, m);
    const Gradients own_grads = of_member(t, grads, m);
    finish(layer, all ? of_member(t, *all, m) : *recur(layer, own, needs, own_grads), own, needs, own_grads);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensors, Tensors, Tensors, Tensors, Tensors, Tensor, Tensor> lstm_layer_backward(
    OptionalTensor d_output, OptionalTensor d_h_n, OptionalTensor d_c_n, OptionalTensor d_cell_states,
    FUSEDLSTM_LAYER_PARAMETERS, Tensor output, Tensor gates, Tensor cell_states, std::vector<bool> needs) {
  STD_TORCH_CHECK(needs.size() == kNeeds, "fusedlstm: expected ", int(kNeeds), " needs, got ", needs.size());
  const DeviceGuard guard(input.get_device_index());
  LayerTensors t FUSEDLSTM_LAYER_TENSORS;
  t.prepare();
  const int64_t D = t.directions;
  const auto check_cells = [&](const Tensor& cells, const char* name) {
    check_sizes(cells, t.each({D, t.rows, t.hidden}), name);
    STD_TORCH_CHECK(cells.scalar_type() == t.acc_dtype(), "fusedlstm: expected ", name, " of the accumulation dtype");
    t.check_place(cells, name);
  };
  t.like_input(output, t.row_sizes(D * t.recurrent()), "output");
  t.like_input(gates, {D, t.rows, 4 * t.hidden}, "gates");
  check_cells(cell_states, "cell_states");
  if (d_output) {
    t.like_input(*d_output, t.row_sizes(D * t.recurrent()), "d_output");
    d_output = unit_stride(*d_output);
  }
  if (d_h_n) t.like_input(*d_h_n, {D, t.batch, t.recurrent()}, "d_h_n");
  if (d_c_n) t.like_input(*d_c_n, {D, t.batch, t.hidden}, "d_c_n");
  if (d_cell_states) check_cells(*d_cell_states, "d_cell_states");
  for (OptionalTensor* grad : {&d_h_n, &d_c_n, &d_cell_states})
    if (*grad) *grad = dense_after(t.lead, **grad);
  for (Tensor* saved : {&output, &gates, &cell_states}) *saved = dense_after(t.lead, *saved);

  // Zeros where there is nothing to run; otherwise every element is written.
  const auto result = [&](bool needed, const Sizes& sizes) {
    if (!needed) return new_tensor(t.input, {0}, t.dtype);
    return t.rows == 0 ? zeros(t.input, t.each(sizes), t.dtype) : new_tensor(t.input, t.each(sizes), t.dtype);
  };
  Gradients grads;
  grads.input = result(needs[kInput], t.row_sizes(t.features));
  grads.h_0 = result(needs[kH0], {D, t.batch, t.recurrent()});
  grads.c_0 = result(needs[kC0], {D, t.batch, t.hidden});
  grads.reset_h = result(needs[kResetH] && t.reset_h, {D, t.batch, t.recurrent()});
  grads.reset_c = result(needs[kResetC] && t.reset_c, {D, t.batch, t.hidden});
  for (size_t d = 0; d < t.weight_ih.size(); ++d) {
    grads.weight_ih.push_back(result(needs[kWeightIh], {4 * t.hidden, t.features}));
    grads.weight_hh.push_back(result(needs[kWeightHh], {4 * t.hidden, t.recurrent()}));
    if (!t.bias_ih.empty()) grads.bias_ih.push_back(result(needs[kBiasIh], {4 * t.hidden}));
    if (!t.bias_hh.empty()) grads.bias_hh.push_back(result(needs[kBiasHh], {4 * t.hidden}));
    if (t.proj > 0) grads.weight_hr.push_back(result(needs[kWeightHr], {t.proj, t.hidden}));
  }

  backward(t, allow_tf32, {{d_output, d_h_n, d_c_n, d_cell_states}, output, gates, cell_states}, needs, grads);
  return {grads.input,   grads.h_0,     grads.c_0,       grads.weight_ih, grads.weight_hh,
          grads.bias_ih, grads.bias_hh, grads.weight_hr, grads.reset_h,   grads.reset_c};
}

// Why no kernel of this library can run on a device, or "".
std::string cuda_obstacle(int64_t ordinal) {
  const DeviceGuard guard(static_cast<int32_t>(ordinal));
  Device device;
  const cudaError_t error = query_device(static_cast<int>(ordinal), device);
  return error == cudaSuccess ? "" : failure_text("device " + std::to_string(ordinal), error);
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

}  // namespace fusedlstm::gpu
