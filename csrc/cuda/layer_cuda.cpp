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

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_layer(FUSEDLSTM_LAYER_PARAMETERS) {
  const DeviceGuard guard(input.get_device_index());
  ForwardResults r = run_forward(Layer(FUSEDLSTM_LAYER_TENSORS, allow_tf32), true);
  return {r.output, r.h_n, r.c_n, r.gates, r.cell_states};
}

std::tuple<Tensor, Tensor, Tensor> lstm_layer_inference(FUSEDLSTM_LAYER_PARAMETERS) {
  const DeviceGuard guard(input.get_device_index());
  ForwardResults r = run_forward(Layer(FUSEDLSTM_LAYER_TENSORS, allow_tf32), false);
  return {r.output, r.h_n, r.c_n};
}

std::tuple<Tensor, Tensor, Tensor, Tensors, Tensors, Tensors, Tensors, Tensors, Tensor, Tensor> lstm_layer_backward(
    OptionalTensor d_output, OptionalTensor d_h_n, OptionalTensor d_c_n, OptionalTensor d_cell_states,
    FUSEDLSTM_LAYER_PARAMETERS, Tensor output, Tensor gates, Tensor cell_states, std::vector<bool> needs) {
  STD_TORCH_CHECK(needs.size() == kNeeds, "fusedlstm: expected ", int(kNeeds), " needs, got ", needs.size());
  const DeviceGuard guard(input.get_device_index());
  const Layer layer(FUSEDLSTM_LAYER_TENSORS, allow_tf32);
  const LayerTensors& t = layer.t;
  const int64_t D = t.directions;
  const auto check_output = [&](const Tensor& y, const char* name) {
    if (t.batch_sizes)
      t.like_input(y, {t.rows, D * t.recurrent()}, name);
    else
      t.like_input(y, {t.steps, t.batch, D * t.recurrent()}, name);
  };
  const auto check_cells = [&](const Tensor& cells, const char* name) {
    check_sizes(cells, {D, t.rows, t.hidden}, name);
    STD_TORCH_CHECK(cells.scalar_type() == t.acc_dtype(), "fusedlstm: expected ", name, " of the accumulation dtype");
    t.same_device(cells, name);
  };
  check_output(output, "output");
  t.like_input(gates, {D, t.rows, 4 * t.hidden}, "gates");
  check_cells(cell_states, "cell_states");
  if (d_output) {
    check_output(*d_output, "d_output");
    d_output = unit_stride(*d_output);
  }
  if (d_h_n) t.like_input(*d_h_n, {D, t.batch, t.recurrent()}, "d_h_n");
  if (d_c_n) t.like_input(*d_c_n, {D, t.batch, t.hidden}, "d_c_n");
  if (d_cell_states) check_cells(*d_cell_states, "d_cell_states");
  for (OptionalTensor* grad : {&d_h_n, &d_c_n, &d_cell_states})
    if (*grad) *grad = dense(**grad);

  // Zeros where there is nothing to run; otherwise every element is written.
  const auto result = [&](bool needed, std::initializer_list<int64_t> sizes) {
    if (!needed) return new_tensor(t.input, {0}, t.dtype);
    return layer.empty() ? zeros(t.input, sizes, t.dtype) : new_tensor(t.input, sizes, t.dtype);
  };
  Gradients grads;
  grads.input = needs[kInput] ? layer.like_rows(t.features) : new_tensor(t.input, {0}, t.dtype);
  for (size_t d = 0; d < t.weight_ih.size(); ++d) {
    grads.weight_ih.push_back(result(needs[kWeightIh], {4 * t.hidden, t.features}));
    grads.weight_hh.push_back(result(needs[kWeightHh], {4 * t.hidden, t.recurrent()}));
    if (!t.bias_ih.empty()) grads.bias_ih.push_back(result(needs[kBiasIh], {4 * t.hidden}));
    if (!t.bias_hh.empty()) grads.bias_hh.push_back(result(needs[kBiasHh], {4 * t.hidden}));
    if (t.proj > 0) grads.weight_hr.push_back(result(needs[kWeightHr], {t.proj, t.hidden}));
  }
  const auto optional_result = [&](bool needed, const Tensor& value) {
    return needed ? torch::stable::to(value, t.dtype) : new_tensor(t.input, {0}, t.dtype);
  };
  if (layer.empty()) {
    const auto pass_on = [&](bool needed, const OptionalTensor& grad, int64_t size) {
      return needed && grad ? torch::stable::clone(*grad) : result(needed, {D, t.batch, size});
    };
    grads.h_0 = pass_on(needs[kH0], d_h_n, t.recurrent());
    grads.c_0 = pass_on(needs[kC0], d_c_n, t.hidden);
    grads.reset_h = result(needs[kResetH] && t.reset_h, {D, t.batch, t.recurrent()});
    grads.reset_c = result(needs[kResetC] && t.reset_c, {D, t.batch, t.hidden});
  } else {
    output = dense(output);
    gates = dense(gates);
    cell_states = dense(cell_states);
    const BackwardRecurrence r = run_backward(layer, {d_output, d_h_n, d_c_n, d_cell_states}, gates, cell_states);
    finish_gradients(layer, r, output, gates, cell_states, needs, grads);
    grads.h_0 = needs[kH0] ? r.d_h_0 : result(false, {});
    grads.c_0 = needs[kC0] ? r.d_c_0 : result(false, {});
    grads.reset_h = optional_result(needs[kResetH] && t.reset && t.reset_h, r.d_reset_h);
    grads.reset_c = optional_result(needs[kResetC] && t.reset && t.reset_c, r.d_reset_c);
  }
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
