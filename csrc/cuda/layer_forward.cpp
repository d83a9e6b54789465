// Forward: the input projection, then the recurrence by a resident kernel or step by step.
#include "layer.h"
#include "tensor_ops.h"

namespace fusedlstm::gpu {
namespace {

// W_ih x of all steps for one direction, and where step t of batch row b stands in it. A transposed input (batch
// first) is multiplied as it lies; other strides are copied, and so is a transposed input of an ensemble, whose members
// the kernels expect one after another.
Tensor project_input(const Layer& layer, size_t d, ForwardArgs& a) {
  const LayerTensors& t = layer.t;
  const int64_t width = 4 * t.hidden;
  Tensor pre_gates = new_tensor(t.input, t.each({t.rows, width}), t.acc_dtype());
  a.pre_gates[d] = pre_gates.data_ptr();
  a.pre_gates_stride_t = t.batch * width;
  a.pre_gates_stride_b = static_cast<int>(width);
  for (int64_t m = 0; m < t.members; ++m) {
    Tensor x = member_of(t, t.input, m);
    if (t.lead == 0 && !t.batch_sizes && !x.is_contiguous() && is_int(t.steps * width)) {
      Tensor batch_first = torch::stable::transpose(x, 0, 1);
      if (batch_first.is_contiguous()) {
        x = batch_first;
        a.pre_gates_stride_t = width;
        a.pre_gates_stride_b = static_cast<int>(t.steps * width);
      }
    }
    x = torch::stable::view(dense(x), {t.rows, t.features});
    layer.multiply(member_of(t, pre_gates, m), x, transposed(member_of(t, t.weight_ih[d], m)));
  }
  return pre_gates;
}

void stream_forward(const Layer& layer, const ForwardArgs& a, size_t d, cudaStream_t stream) {
  const LayerTensors& t = layer.t;
  const Tensor sums = new_tensor(t.input, {t.batch, 4 * t.hidden}, t.acc_dtype());
  const Tensor h = new_tensor(t.input, {t.batch, t.recurrent()}, t.dtype);
  const Tensor c = new_tensor(t.input, {t.batch, t.hidden}, t.acc_dtype());
  ForwardStep state{static_cast<int>(d), 0, sums.data_ptr(), h.data_ptr(), c.data_ptr(), nullptr};
  Tensor hidden, projected, weight_hr;
  if (t.proj > 0) {
    hidden = new_tensor(t.input, {t.batch, t.hidden}, t.dtype);
    projected = new_tensor(t.input, {t.batch, t.proj}, t.acc_dtype());
    weight_hr = transposed(t.weight_hr[d]);
    state.hidden = hidden.data_ptr();
  }
  const Tensor weight_hh = transposed(t.weight_hh[d]);
  for (state.step = -1; state.step < t.steps; ++state.step) {
    const int64_t count = state.step < 0 ? t.batch : layer.rows_at(layer.time(d, state.step));
    if (state.step >= 0) layer.multiply(first_rows(sums, count), first_rows(h, count), weight_hh);
    check(launch_forward_step(a, state, stream), "forward step");
    if (t.proj == 0) continue;
    if (state.step >= 0) layer.multiply(first_rows(projected, count), first_rows(hidden, count), weight_hr);
    check(launch_forward_projected(a, state, projected.data_ptr(), stream), "projection step");
  }
}

}  // namespace

bool run_forward(const Layer& layer, ForwardResults& r) {
  const LayerTensors& t = layer.t;
  if (layer.empty()) {
    torch::stable::copy_(r.h_n, t.h_0);
    torch::stable::copy_(r.c_n, t.c_0);
    return true;
  }
  ForwardArgs a{};
  a.rows = layer.rows;
  a.dtype = dtype_of(t.dtype);
  a.output = r.output.data_ptr();
  a.h_n = r.h_n.data_ptr();
  a.c_n = r.c_n.data_ptr();
  a.gates = r.gates.defined() ? r.gates.data_ptr() : nullptr;
  a.cell_states = r.cell_states.defined() ? r.cell_states.data_ptr() : nullptr;
  Tensors projected;  // kept until everything is launched
  for (size_t d = 0; d < t.weight_ih.size(); ++d) {
    projected.push_back(project_input(layer, d, a));
    a.bias_ih[d] = t.bias_ih.empty() ? nullptr : t.bias_ih[d].data_ptr();
    a.bias_hh[d] = t.bias_hh.empty() ? nullptr : t.bias_hh[d].data_ptr();
  }
  const cudaStream_t stream = current_stream(t.input);
  if (layer.launch_resident(Pass::kForward, a, launch_forward, stream)) return true;
  if (t.lead > 0) return false;
  for (size_t d = 0; d < t.weight_hh.size(); ++d) stream_forward(layer, a, d, stream);
  return true;
}

}  // namespace fusedlstm::gpu
