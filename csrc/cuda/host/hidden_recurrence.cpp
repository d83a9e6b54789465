#include "hidden_recurrence.h"

namespace fusedlstm::cuda {
namespace {

// Those of hidden, which is zero wherever a row does not start from the step before.
RowStates rows_of_hidden(RowStates rows) {
  rows.R = rows.H;
  rows.initial[0] = rows.reset_state[0] = nullptr;
  return rows;
}

// W_hh h of the states that rows of direction d start from, acc [B, GH]; of no states, none.
Buffer entered_products(const PreparedLayer& p, int d, const View& h) {
  if (!h.data) return {};
  Buffer products(p.host, "products of entered states", p.layer.acc_dtype(),
                  {p.layer.batch, p.layer.weight_hh[d].sizes[0]});
  p.multiply(products, h[d], p.layer.weight_hh[d].transposed());
  return products;
}

// Columns of direction d in a [rows, D * width] matrix.
View of_direction(const View& matrix, int d, int64_t width) {
  return matrix.narrow(1, d * width, width);
}

}  // namespace

bool forward_by_hidden(PreparedLayer& p, Choice& choice, ForwardArgs a, const ForwardResults& results) {
  const Layer& layer = p.layer;
  const int64_t D = layer.directions, H = layer.hidden, P = layer.proj;
  for (int d = 0; d < D; ++d) {
    const Buffer of_initial = entered_products(p, d, layer.initial[0]);
    const Buffer of_reset = entered_products(p, d, layer.reset ? layer.reset_state[0] : View());
    check(launch_entered_states(a, d, layer.weight_hh[d].sizes[0], of_initial.data, of_reset.data, p.host.stream),
          "entered states");
  }
  const View hidden = p.rows_workspace("hidden", layer.dtype, {layer.rows, D * H});
  a.rows = rows_of_hidden(a.rows);
  a.output = hidden.data;
  a.last[0] = p.workspace("last hidden", layer.dtype, {D, layer.batch, H}).data;
  if (!p.launch_resident(choice, a, launch_forward)) return false;
  const View output = results.output.as({layer.rows, D * P});
  for (int d = 0; d < D; ++d)
    p.multiply(of_direction(output, d, P), of_direction(hidden, d, H), layer.weight_hr[d].transposed());
  check(launch_last_states(p.rows, layer.dtype, output.data, results.last[0].data, p.host.stream), "last states");
  return true;
}

bool backward_by_hidden(PreparedLayer& p, Choice& choice, BackwardArgs a, const Incoming& in,
                        const BackwardRecurrence& r) {
  const Layer& layer = p.layer;
  const int64_t D = layer.directions, H = layer.hidden, P = layer.proj;
  const BackwardArgs of_layer = a;
  a.rows = rows_of_hidden(a.rows);
  if (in.d_output.data) {
    const View d_output = p.contiguous("d_output", in.d_output).as({layer.rows, D * P});
    const View d_hidden = p.workspace("d_hidden", layer.dtype, {layer.rows, D * H});
    for (int d = 0; d < D; ++d)
      p.multiply(of_direction(d_hidden, d, H), of_direction(d_output, d, P), layer.weight_hr[d]);
    a.d_output = d_hidden.data;
    a.d_output_stride_t = layer.batch_sizes ? 0 : layer.batch * D * H;
    a.d_output_stride_b = static_cast<int>(D * H);
  }
  if (in.d_last[0].data) {
    const View d_last = p.contiguous("d_last", in.d_last[0]);
    const View d_hidden = p.workspace("d_last of hidden", layer.dtype, {D, layer.batch, H});
    for (int d = 0; d < D; ++d) p.multiply(d_hidden[d], d_last[d], layer.weight_hr[d]);
    a.d_last[0] = d_hidden.data;
  }
  a.d_initial[0] = p.workspace("d_initial of hidden", layer.dtype, {D, layer.batch, H}).data;  // of zeros: of no use
  a.d_reset_state[0] = nullptr;
  if (!p.launch_resident(choice, a, launch_backward)) return false;
  for (int d = 0; d < D; ++d) {
    const Buffer d_previous(p.host, "d_previous", layer.acc_dtype(), {layer.rows, P});
    p.multiply(d_previous, r.d_from_hidden[d], layer.weight_hh[d]);
    const View d_projected = r.d_projected[d];
    check(launch_projected_gradients(of_layer, d, d_previous.data, d_projected.data, p.host.stream),
          "projected gradients");
    check(launch_entered_gradients(of_layer, d, d_previous.data, p.host.stream), "entered gradients");
  }
  return true;
}

}  // namespace fusedlstm::cuda
