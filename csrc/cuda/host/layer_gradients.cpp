#include "layer_gradients.h"

namespace fusedlstm::cuda {
namespace {

// [N, I], without what lies in padding: zero d_gates times NaN would be NaN.
View running_input(PreparedLayer& p) {
  const Layer& layer = p.layer;
  const View all = p.contiguous("input", layer.input).as({layer.rows, layer.features});
  if (!layer.has_idle_rows()) return all;
  const View runs = p.workspace("running rows", layer.dtype, all.shape());
  check(launch_running_rows(p.rows, layer.dtype, layer.features, all.data, runs.data, p.host.stream), "running rows");
  return runs;
}

// [D, N, R], the h that every step started from.
View previous_states(PreparedLayer& p, const View& output) {
  const Layer& layer = p.layer;
  const View previous = p.rows_workspace("previous", layer.dtype, {layer.directions, layer.rows, layer.recurrent()});
  check(launch_previous_states(p.rows, layer.dtype, output.data, previous.data, p.host.stream), "previous states");
  return previous;
}

// [D, N, H], what the projection saw.
View hidden_states(PreparedLayer& p, const View& gates, const View& cell_states) {
  const Layer& layer = p.layer;
  const View hidden = p.rows_workspace("hidden", layer.dtype, {layer.directions, layer.rows, layer.hidden});
  check(launch_hidden_states(p.rows, layer.dtype, gates.data, cell_states.data, hidden.data, p.host.stream),
        "hidden states");
  return hidden;
}

// The two biases enter as a sum: their gradients are equal, but must not share memory.
void bias_gradients(Host& host, const View& d_gates, const View& bias_ih, const View& bias_hh) {
  const View& first = bias_ih.data ? bias_ih : bias_hh;
  if (first.data) host.sum_rows(first, d_gates);
  if (bias_ih.data && bias_hh.data) host.copy(bias_hh, first);
}

// The gradient of a reset state, which nothing flowed to without resets.
void reset_gradient(Host& host, const View& gradient, const View& sum) {
  if (!gradient.data) return;
  sum.data ? host.copy(gradient, sum) : host.zero(gradient);
}

}  // namespace

void finish_gradients(PreparedLayer& p, const BackwardRecurrence& r, const Incoming& in, const Gradients& grads) {
  const Layer& layer = p.layer;
  const View x = grads.weight_ih[0].data ? running_input(p) : View();
  const View previous = grads.weight_hh[0].data ? previous_states(p, in.output) : View();
  const View hidden = grads.weight_hr[0].data ? hidden_states(p, in.gates, in.cell_states) : View();
  for (int d = 0; d < layer.directions; ++d) {
    const View d_gates = r.d_gates[d];
    if (grads.input.data) {
      const View d_x = grads.input.as({layer.rows, layer.features});
      d == 0 ? p.multiply(d_x, d_gates, layer.weight_ih[d]) : p.multiply_add(d_x, d_gates, layer.weight_ih[d]);
    }
    if (x.data) p.multiply(grads.weight_ih[d], d_gates.transposed(), x);
    if (previous.data) p.multiply(grads.weight_hh[d], d_gates.transposed(), previous[d]);
    if (hidden.data) p.multiply(grads.weight_hr[d], r.d_projected[d].transposed(), hidden[d]);
    bias_gradients(p.host, d_gates, grads.bias_ih[d], grads.bias_hh[d]);
  }
  reset_gradient(p.host, grads.reset_h, r.d_reset_h);
  reset_gradient(p.host, grads.reset_c, r.d_reset_c);
}

}  // namespace fusedlstm::cuda
