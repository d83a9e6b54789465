#include "layer_gradients.h"

namespace fusedlstm::cuda {
namespace {

// [N, I], without what lies in padding: zero gradients times NaN would be NaN.
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
View hidden_states(PreparedLayer& p, const View& saved, const View& carried) {
  const Layer& layer = p.layer;
  const View hidden = p.rows_workspace("hidden", layer.dtype, {layer.directions, layer.rows, layer.hidden});
  check(launch_hidden_states(p.arguments(), saved.data, carried.data, hidden.data, p.host.stream), "hidden states");
  return hidden;
}

// Those of both biases. Where no gate is apart they enter as a sum: equal gradients, which must not share memory.
void bias_gradients(Host& host, const CellSizes& cell, const View& d_from_input, const View& d_from_hidden,
                    const View& bias_ih, const View& bias_hh) {
  if (bias_ih.data) host.sum_rows(bias_ih, d_from_input);
  if (!bias_hh.data) return;
  const bool is_known = cell.apart() == 0 && bias_ih.data;
  is_known ? host.copy(bias_hh, bias_ih) : host.sum_rows(bias_hh, d_from_hidden);
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
  const View hidden = grads.weight_hr[0].data ? hidden_states(p, in.saved, in.carried) : View();
  for (int d = 0; d < layer.directions; ++d) {
    const View d_from_input = r.d_from_input[d], d_from_hidden = r.d_from_hidden[d];
    if (grads.input.data) {
      const View d_x = grads.input.as({layer.rows, layer.features});
      d == 0 ? p.multiply(d_x, d_from_input, layer.weight_ih[d])
             : p.multiply_add(d_x, d_from_input, layer.weight_ih[d]);
    }
    if (x.data) p.multiply(grads.weight_ih[d], d_from_input.transposed(), x);
    if (previous.data) p.multiply(grads.weight_hh[d], d_from_hidden.transposed(), previous[d]);
    if (hidden.data) p.multiply(grads.weight_hr[d], r.d_projected[d].transposed(), hidden[d]);
    bias_gradients(p.host, layer.cell.sizes, d_from_input, d_from_hidden, grads.bias_ih[d], grads.bias_hh[d]);
  }
  for (int i = 0; i < layer.cell.sizes.states; ++i) reset_gradient(p.host, grads.reset_state[i], r.d_reset_state[i]);
}

}  // namespace fusedlstm::cuda
