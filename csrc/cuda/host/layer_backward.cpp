// Backward: the recurrence by a resident kernel or step by step, then the products over all steps.
#include <optional>

#include "layer_gradients.h"

namespace fusedlstm::cuda {
namespace {

// d_projected: [N, P] of this direction, written here; null without projection.
void stream_backward(const PreparedLayer& p, const BackwardArgs& a, int d, const View& d_gates,
                     const View& d_projected) {
  const Layer& layer = p.layer;
  const int64_t B = layer.batch, H = layer.hidden, R = layer.recurrent(), T = layer.steps;
  const Buffer sums(p.host, "sums", layer.acc_dtype(), {B, R});
  const Buffer d_h(p.host, "d_h", layer.acc_dtype(), {B, R});
  const Buffer d_c(p.host, "d_c", layer.acc_dtype(), {B, H});
  Buffer d_hidden;
  if (layer.proj > 0) d_hidden = Buffer(p.host, "d_hidden", layer.acc_dtype(), {B, H});
  BackwardStep state{.d = d,
                     .step = 0,
                     .sums = sums.data,
                     .d_h = d_h.data,
                     .d_c = d_c.data,
                     .d_projected = d_projected.data,
                     .d_hidden = d_hidden.data};
  for (; state.step <= T; ++state.step) {
    if (state.step > 0) {
      const int64_t done = p.time(d, T - state.step);
      p.multiply(sums.narrow(0, 0, layer.rows_at(done)), p.rows_of_step(d_gates, done), layer.weight_hh[d]);
    }
    if (layer.proj > 0) {
      check(launch_backward_projected(a, state, p.host.stream), "projection's backward step");
      if (state.step < T) {
        const int64_t now = p.time(d, T - 1 - state.step);
        p.multiply(d_hidden.narrow(0, 0, layer.rows_at(now)), p.rows_of_step(d_projected, now), layer.weight_hr[d]);
      }
    }
    check(launch_backward_step(a, state, p.host.stream), "backward step");
  }
}

// The recurrence, with the gradients of the initial state; of one layer, or of all members in one launch. Nothing: no
// kernel runs all members at once.
std::optional<BackwardRecurrence> recur(PreparedLayer& p, const Incoming& in, const Gradients& grads) {
  const Layer& layer = p.layer;
  const Choice choice = p.host.choose(layer.problem(Pass::kBackward));
  if (layer.is_ensemble && !layer.is_resident(choice.plan)) return std::nullopt;
  const int64_t D = layer.directions, B = layer.batch, H = layer.hidden, R = layer.recurrent();
  const auto written = [&](const View& gradient, const char* name, int64_t size) {
    return gradient.data ? gradient : p.workspace(name, layer.dtype, layer.each({D, B, size}));
  };
  BackwardRecurrence r;
  r.d_gates = p.rows_workspace("d_gates", layer.dtype, layer.each({D, layer.rows, 4 * H}));
  BackwardArgs a{};
  a.rows = p.rows;
  a.dtype = layer.dtype;
  a.gates = p.contiguous("gates", in.gates).data;
  a.cell_states = p.contiguous("cell_states", in.cell_states).data;
  if (in.d_output.data) {
    const int batch = in.d_output.dimensions - 2;  // or packed rows
    View d_output = in.d_output;
    if (layer.is_ensemble || !is_int(d_output.strides[batch])) d_output = p.contiguous("d_output", d_output);
    a.d_output = d_output.data;
    a.d_output_stride_t = layer.batch_sizes ? 0 : d_output.strides[batch - 1];
    a.d_output_stride_b = static_cast<int>(d_output.strides[batch]);
  }
  a.d_h_n = p.contiguous("d_h_n", in.d_h_n).data;
  a.d_c_n = p.contiguous("d_c_n", in.d_c_n).data;
  a.d_cell_states = p.contiguous("d_cell_states", in.d_cell_states).data;
  a.d_gates = r.d_gates.data;
  a.d_h_0 = written(grads.h_0, "d_h_0", R).data;
  a.d_c_0 = written(grads.c_0, "d_c_0", H).data;
  if (layer.reset) {
    r.d_reset_h = p.workspace("d_reset_h", layer.acc_dtype(), layer.each({D, B, R}));
    r.d_reset_c = p.workspace("d_reset_c", layer.acc_dtype(), layer.each({D, B, H}));
    p.host.zero(r.d_reset_h);
    p.host.zero(r.d_reset_c);
    a.d_reset_h = r.d_reset_h.data;
    a.d_reset_c = r.d_reset_c.data;
  }
  if (p.launch_resident(choice, a, launch_backward)) return r;
  if (layer.is_ensemble) return std::nullopt;
  if (layer.proj > 0) r.d_projected = p.rows_workspace("d_projected", layer.dtype, {D, layer.rows, R});
  for (int d = 0; d < D; ++d) stream_backward(p, a, d, r.d_gates[d], layer.proj > 0 ? r.d_projected[d] : View());
  return r;
}

// What is member m's.
Incoming of_member(const Layer& layer, const Incoming& in, int64_t m) {
  const auto own = [&](const View& all) { return layer.of_member(all, m); };
  return {.output = own(in.output),
          .gates = own(in.gates),
          .cell_states = own(in.cell_states),
          .d_output = own(in.d_output),
          .d_h_n = own(in.d_h_n),
          .d_c_n = own(in.d_c_n),
          .d_cell_states = own(in.d_cell_states)};
}

Gradients of_member(const Layer& layer, Gradients grads, int64_t m) {
  for (View* view : {&grads.input, &grads.h_0, &grads.c_0, &grads.reset_h, &grads.reset_c})
    *view = layer.of_member(*view, m);
  for (View* each : {grads.weight_ih, grads.weight_hh, grads.bias_ih, grads.bias_hh, grads.weight_hr})
    for (int d = 0; d < layer.directions; ++d) each[d] = layer.of_member(each[d], m);
  return grads;
}

BackwardRecurrence of_member(const Layer& layer, const BackwardRecurrence& r, int64_t m) {
  const auto own = [&](const View& all) { return layer.of_member(all, m); };
  return {own(r.d_gates), own(r.d_projected), own(r.d_reset_h), own(r.d_reset_c)};
}

}  // namespace

void run_backward(Host& host, const Layer& layer, const Incoming& in, const Gradients& grads) {
  if (layer.rows == 0) {
    if (grads.h_0.data && in.d_h_n.data) host.copy(grads.h_0, in.d_h_n);
    if (grads.c_0.data && in.d_c_n.data) host.copy(grads.c_0, in.d_c_n);
    return;
  }
  std::optional<PreparedLayer> ensemble;  // holds what its recurrence leaves
  std::optional<BackwardRecurrence> all;
  if (may_run_at_once(layer)) all = recur(ensemble.emplace(host, layer), in, grads);
  for (int64_t m = 0; m < layer.members; ++m) {
    PreparedLayer own(host, layer.member(m));
    const Incoming own_in = of_member(layer, in, m);
    const Gradients own_grads = of_member(layer, grads, m);
    const BackwardRecurrence r = all ? of_member(layer, *all, m) : *recur(own, own_in, own_grads);
    finish_gradients(own, r, own_in, own_grads);
  }
}

}  // namespace fusedlstm::cuda
