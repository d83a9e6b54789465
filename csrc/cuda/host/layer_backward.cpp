// Backward: the recurrence by a resident kernel or step by step, then the products over all steps.
#include "layer_backward.h"

#include <optional>

#include "hidden_recurrence.h"

namespace fusedlstm::cuda {
namespace {

// d_projected: [N, P] of this direction, written here; null without projection.
void stream_backward(const PreparedLayer& p, const BackwardArgs& a, int d, const View& d_from_hidden,
                     const View& d_projected) {
  const Layer& layer = p.layer;
  const int64_t B = layer.batch, H = layer.hidden, R = layer.recurrent(), T = layer.steps;
  const Buffer sums(p.host, "sums", layer.acc_dtype(), {B, R});
  const Buffer d_h(p.host, "d_h", layer.acc_dtype(), {B, R});
  const Buffer d_carried(p.host, "d_carried", layer.acc_dtype(), {B, layer.cell.sizes.carried * H});
  Buffer d_hidden;
  if (layer.proj > 0) d_hidden = Buffer(p.host, "d_hidden", layer.acc_dtype(), {B, H});
  BackwardStep state{.d = d,
                     .step = 0,
                     .sums = sums.data,
                     .d_h = d_h.data,
                     .d_carried = d_carried.data,
                     .d_projected = d_projected.data,
                     .d_hidden = d_hidden.data};
  for (; state.step <= T; ++state.step) {
    if (state.step > 0) {
      const int64_t done = p.time(d, T - state.step);
      p.multiply(sums.narrow(0, 0, layer.rows_at(done)), p.rows_of_step(d_from_hidden, done), layer.weight_hh[d]);
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
std::optional<BackwardRecurrence> recur(PreparedLayer& p, const Incoming& in, const Gradients& grads, Choice& choice) {
  const Layer& layer = p.layer;
  if (layer.is_ensemble && !layer.is_resident(choice.plan)) return std::nullopt;
  const int64_t D = layer.directions;
  BackwardRecurrence r;
  BackwardArgs a = backward_arguments(p, in, grads, r);
  if (layer.proj > 0) r.d_projected = p.rows_workspace("d_projected", layer.dtype, {D, layer.rows, layer.proj});
  if (layer.proj > 0 && layer.is_resident(choice.plan) ? backward_by_hidden(p, choice, a, in, r)
                                                       : p.launch_resident(choice, a, launch_backward))
    return r;
  if (layer.is_ensemble) return std::nullopt;
  for (int d = 0; d < D; ++d) stream_backward(p, a, d, r.d_from_hidden[d], layer.proj > 0 ? r.d_projected[d] : View());
  p.host.launched(choice);
  return r;
}

// What is member m's.
Incoming of_member(const Layer& layer, Incoming in, int64_t m) {
  for (View* view : {&in.output, &in.saved, &in.carried, &in.d_output, &in.d_carried})
    *view = layer.of_member(*view, m);
  for (View& state : in.d_last) state = layer.of_member(state, m);
  return in;
}

Gradients of_member(const Layer& layer, Gradients grads, int64_t m) {
  grads.input = layer.of_member(grads.input, m);
  for (View* each : {grads.initial, grads.reset_state})
    for (int i = 0; i < kMaxStates; ++i) each[i] = layer.of_member(each[i], m);
  for (View* each : {grads.weight_ih, grads.weight_hh, grads.bias_ih, grads.bias_hh, grads.weight_hr})
    for (int d = 0; d < layer.directions; ++d) each[d] = layer.of_member(each[d], m);
  return grads;
}

BackwardRecurrence of_member(const Layer& layer, BackwardRecurrence r, int64_t m) {
  for (View* view : {&r.d_from_hidden, &r.d_from_input, &r.d_projected}) *view = layer.of_member(*view, m);
  for (View& state : r.d_reset_state) state = layer.of_member(state, m);
  return r;
}

}  // namespace

BackwardArgs backward_arguments(PreparedLayer& p, const Incoming& in, const Gradients& grads, BackwardRecurrence& r) {
  const Layer& layer = p.layer;
  const CellSizes& cell = layer.cell.sizes;
  const int64_t D = layer.directions, R = layer.recurrent();
  const Sizes of_gates = layer.each({D, layer.rows, cell.gates * layer.hidden});
  r.d_from_hidden = p.rows_workspace("d_from_hidden", layer.dtype, of_gates);
  r.d_from_input = cell.apart() > 0 ? p.rows_workspace("d_from_input", layer.dtype, of_gates) : r.d_from_hidden;
  BackwardArgs a{};
  static_cast<LayerArgs&>(a) = p.arguments();
  a.output = p.contiguous("output", in.output).data;
  a.saved = p.contiguous("saved", in.saved).data;
  a.carried = p.contiguous("carried", in.carried).data;
  if (in.d_output.data) {
    const int batch = in.d_output.dimensions - 2;  // or packed rows
    View d_output = in.d_output;
    if (layer.is_ensemble || !is_int(d_output.strides[batch])) d_output = p.contiguous("d_output", d_output);
    a.d_output = d_output.data;
    a.d_output_stride_t = layer.batch_sizes ? 0 : d_output.strides[batch - 1];
    a.d_output_stride_b = static_cast<int>(d_output.strides[batch]);
  }
  a.d_carried = p.contiguous("d_carried", in.d_carried).data;
  a.d_from_hidden = r.d_from_hidden.data;
  a.d_from_input = r.d_from_input.data;
  for (int i = 0; i < cell.states; ++i) {
    const Sizes sizes = layer.each({D, layer.batch, i == 0 ? R : layer.hidden});
    a.d_last[i] = p.contiguous("d_last", in.d_last[i]).data;
    const View& d_initial = grads.initial[i];
    a.d_initial[i] = d_initial.data ? d_initial.data : p.workspace("d_initial", layer.dtype, sizes).data;
    if (!layer.reset) continue;
    r.d_reset_state[i] = p.workspace("d_reset_state", layer.acc_dtype(), sizes);
    p.host.zero(r.d_reset_state[i]);
    a.d_reset_state[i] = r.d_reset_state[i].data;
  }
  return a;
}

void run_backward(Host& host, const Layer& layer, const Incoming& in, const Gradients& grads, Choice& choice) {
  if (layer.rows == 0) {
    for (int i = 0; i < kMaxStates; ++i)
      if (grads.initial[i].data && in.d_last[i].data) host.copy(grads.initial[i], in.d_last[i]);
    return;
  }
  if (!layer.is_ensemble) {
    PreparedLayer own(host, layer);
    return finish_gradients(own, *recur(own, in, grads, choice), in, grads);
  }
  std::optional<PreparedLayer> ensemble;  // holds what its recurrence leaves
  std::optional<BackwardRecurrence> all;
  if (may_run_at_once(layer)) all = recur(ensemble.emplace(host, layer), in, grads, choice);
  std::optional<Choice> of_one;
  if (!all) of_one = choose(host, layer.member(0), Pass::kBackward);
  for (int64_t m = 0; m < layer.members; ++m) {
    PreparedLayer own(host, layer.member(m));
    const Incoming own_in = of_member(layer, in, m);
    const Gradients own_grads = of_member(layer, grads, m);
    const BackwardRecurrence r = all ? of_member(layer, *all, m) : *recur(own, own_in, own_grads, *of_one);
    finish_gradients(own, r, own_in, own_grads);
  }
}

void run_backward(Host& host, const Layer& layer, const Incoming& in, const Gradients& grads) {
  Choice choice = choose(host, layer, Pass::kBackward);
  run_backward(host, layer, in, grads, choice);
}

}  // namespace fusedlstm::cuda
