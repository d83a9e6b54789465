// Backward: the recurrence by a resident kernel or step by step, then the products over all steps.
#include "layer.h"
#include "tensor_ops.h"

namespace fusedlstm::gpu {
namespace {

// d_projected: [N, P] of this direction, written here; undefined without projection.
void stream_backward(const Layer& layer, const BackwardArgs& a, size_t d, const Tensor& d_gates,
                     const Tensor& d_projected, cudaStream_t stream) {
  const LayerTensors& t = layer.t;
  const Tensor sums = new_tensor(t.input, {t.batch, t.recurrent()}, t.acc_dtype());
  const Tensor d_h = new_tensor(t.input, {t.batch, t.recurrent()}, t.acc_dtype());
  const Tensor d_c = new_tensor(t.input, {t.batch, t.hidden}, t.acc_dtype());
  BackwardStep state{static_cast<int>(d), 0, sums.data_ptr(), d_h.data_ptr(), d_c.data_ptr(), nullptr, nullptr};
  Tensor d_hidden;
  if (t.proj > 0) {
    d_hidden = new_tensor(t.input, {t.batch, t.hidden}, t.acc_dtype());
    state.d_projected = d_projected.data_ptr();
    state.d_hidden = d_hidden.data_ptr();
  }
  for (state.step = 0; state.step <= t.steps; ++state.step) {
    if (state.step > 0) {
      const int64_t done = layer.time(d, t.steps - state.step);
      layer.multiply(first_rows(sums, layer.rows_at(done)), layer.rows_of_step(d_gates, done), t.weight_hh[d]);
    }
    if (t.proj > 0) {
      check(launch_backward_projected(a, state, stream), "projection's backward step");
      if (state.step < t.steps) {
        const int64_t now = layer.time(d, t.steps - 1 - state.step);
        layer.multiply(first_rows(d_hidden, layer.rows_at(now)), layer.rows_of_step(d_projected, now), t.weight_hr[d]);
      }
    }
    check(launch_backward_step(a, state, stream), "backward step");
  }
}

}  // namespace

std::optional<BackwardRecurrence> run_backward(const Layer& layer, const OutputGradients& d_out, const Tensor& gates,
                                               const Tensor& cell_states, const Tensor& d_h_0, const Tensor& d_c_0) {
  const LayerTensors& t = layer.t;
  const int64_t D = t.directions;
  BackwardRecurrence r;
  r.d_gates = layer.new_rows(t.each({D, t.rows, 4 * t.hidden}), t.dtype);
  BackwardArgs a{};
  a.rows = layer.rows;
  a.dtype = dtype_of(t.dtype);
  a.gates = gates.data_ptr();
  a.cell_states = cell_states.data_ptr();
  Tensor d_output;  // kept until everything is launched
  if (d_out.output) {
    const int64_t batch = t.batch_sizes ? t.lead : t.lead + 1;  // or packed rows
    d_output = is_int(d_out.output->stride(batch)) ? *d_out.output : dense(*d_out.output);
    a.d_output = d_output.data_ptr();
    a.d_output_stride_t = t.batch_sizes ? 0 : d_output.stride(t.lead);
    a.d_output_stride_b = static_cast<int>(d_output.stride(batch));
  }
  a.d_h_n = d_out.h_n ? d_out.h_n->data_ptr() : nullptr;
  a.d_c_n = d_out.c_n ? d_out.c_n->data_ptr() : nullptr;
  a.d_cell_states = d_out.cell_states ? d_out.cell_states->data_ptr() : nullptr;
  a.d_gates = r.d_gates.data_ptr();
  a.d_h_0 = d_h_0.data_ptr();
  a.d_c_0 = d_c_0.data_ptr();
  if (t.reset) {
    r.d_reset_h = zeros(t.input, t.each({D, t.batch, t.recurrent()}), t.acc_dtype());
    r.d_reset_c = zeros(t.input, t.each({D, t.batch, t.hidden}), t.acc_dtype());
    a.d_reset_h = r.d_reset_h.data_ptr();
    a.d_reset_c = r.d_reset_c.data_ptr();
  }
  const cudaStream_t stream = current_stream(t.input);
  if (layer.launch_resident(Pass::kBackward, a, launch_backward, stream)) return r;
  if (t.lead > 0) return std::nullopt;
  if (t.proj > 0) r.d_projected = layer.new_rows({D, t.rows, t.proj}, t.dtype);
  for (size_t d = 0; d < t.weight_hh.size(); ++d) {
    const auto i = static_cast<int64_t>(d);
    const Tensor d_projected = t.proj > 0 ? torch::stable::select(r.d_projected, 0, i) : Tensor();
    stream_backward(layer, a, d, torch::stable::select(r.d_gates, 0, i), d_projected, stream);
  }
  return r;
}

void finish_gradients(const Layer& layer, const BackwardRecurrence& r, const Tensor& output, const Tensor& gates,
                      const Tensor& cell_states, const std::vector<bool>& needs, Gradients& grads) {
  const LayerTensors& t = layer.t;
  const int64_t D = t.directions;
  const cudaStream_t stream = current_stream(t.input);
  Tensor x = torch::stable::view(dense(t.input), {t.rows, t.features});
  if (layer.has_idle_rows() && needs[kWeightIh]) {  // zero d_gates times NaN padding would be NaN
    Tensor running = new_tensor(t.input, {t.rows, t.features}, t.dtype);
    check(launch_running_rows(layer.rows, dtype_of(t.dtype), t.features, x.data_ptr(), running.data_ptr(), stream),
          "running rows");
    x = running;
  }
  Tensor previous, hidden;
  if (needs[kWeightHh]) {
    previous = layer.new_rows({D, t.rows, t.recurrent()}, t.dtype);
    check(launch_previous_states(layer.rows, dtype_of(t.dtype), output.data_ptr(), previous.data_ptr(), stream),
          "previous states");
  }
  if (t.proj > 0 && needs[kWeightHr]) {
    hidden = layer.new_rows({D, t.rows, t.hidden}, t.dtype);
    check(launch_hidden_states(layer.rows, dtype_of(t.dtype), gates.data_ptr(), cell_states.data_ptr(),
                               hidden.data_ptr(), stream),
          "hidden states");
  }
  for (size_t d = 0; d < t.weight_ih.size(); ++d) {
    const auto i = static_cast<int64_t>(d);
    const Tensor d_gates = torch::stable::select(r.d_gates, 0, i);
    if (needs[kInput]) {
      const Tensor d_x = torch::stable::view(grads.input, {t.rows, t.features});
      d == 0 ? layer.multiply(d_x, d_gates, t.weight_ih[d]) : layer.multiply_add(d_x, d_gates, t.weight_ih[d]);
    }
    if (needs[kWeightIh]) layer.multiply(grads.weight_ih[d], transposed(d_gates), x);
    if (needs[kWeightHh])
      layer.multiply(grads.weight_hh[d], transposed(d_gates), torch::stable::select(previous, 0, i));
    if (t.proj > 0 && needs[kWeightHr])
      layer.multiply(grads.weight_hr[d], transposed(torch::stable::select(r.d_projected, 0, i)),
                     torch::stable::select(hidden, 0, i));
    // The two biases enter as a sum: their gradients are equal, but must not share memory.
    Tensor* first = nullptr;
    for (auto [need, list] : {std::pair{kBiasIh, &grads.bias_ih}, {kBiasHh, &grads.bias_hh}}) {
      if (!needs[need] || list->empty()) continue;
      if (first) {
        torch::stable::copy_((*list)[d], *first);
      } else {
        const int64_t rows_dim = 0;
        torch::stable::sum_out((*list)[d], d_gates, {{&rows_dim, 1}});
        first = &(*list)[d];
      }
    }
  }
}

}  // namespace fusedlstm::gpu
