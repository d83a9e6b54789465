// Forward: the input projection, then the recurrence by a resident kernel or step by step.
#include "layer_forward.h"

#include "hidden_recurrence.h"

namespace fusedlstm::cuda {
namespace {

void stream_forward(const PreparedLayer& p, const ForwardArgs& a, int d) {
  const Layer& layer = p.layer;
  const CellSizes& cell = layer.cell.sizes;
  const int64_t B = layer.batch, H = layer.hidden, R = layer.recurrent();
  const Buffer sums(p.host, "sums", layer.acc_dtype(), {B, cell.gates * H});
  const Buffer h(p.host, "h", layer.dtype, {B, R});
  const Buffer carried(p.host, "carried", layer.acc_dtype(), {B, cell.carried * H});
  Buffer hidden, projected;
  if (layer.proj > 0) {
    hidden = Buffer(p.host, "hidden", layer.dtype, {B, H});
    projected = Buffer(p.host, "projected", layer.acc_dtype(), {B, R});
  }
  const View weight_hh = layer.weight_hh[d].transposed(), weight_hr = layer.weight_hr[d].transposed();
  ForwardStep state{.d = d, .step = -1, .sums = sums.data, .h = h.data, .carried = carried.data, .hidden = hidden.data};
  for (; state.step < layer.steps; ++state.step) {
    const int64_t count = state.step < 0 ? B : layer.rows_at(p.time(d, state.step));
    if (state.step >= 0) p.multiply(sums.narrow(0, 0, count), h.narrow(0, 0, count), weight_hh);
    check(launch_forward_step(a, state, p.host.stream), "forward step");
    if (layer.proj == 0) continue;
    if (state.step >= 0) p.multiply(projected.narrow(0, 0, count), hidden.narrow(0, 0, count), weight_hr);
    check(launch_forward_projected(a, state, projected.data, p.host.stream), "projection step");
  }
}

// Of one layer, or of all members in one launch. False: no kernel runs all members at once, and nothing was run.
bool forward(Host& host, const Layer& given, const ForwardResults& r, Choice& choice) {
  if (given.is_ensemble && !given.is_resident(choice.plan)) return false;
  PreparedLayer p(host, given);
  const Layer& layer = p.layer;
  ForwardArgs a = forward_arguments(p, r);
  Buffer pre_gates[kMaxDirections];
  for (int d = 0; d < layer.directions; ++d) {
    const Sizes sizes = layer.each({layer.rows, layer.cell.sizes.gates * layer.hidden});
    pre_gates[d] = Buffer(host, "pre_gates", layer.acc_dtype(), sizes);
    project_input(p, d, pre_gates[d], a);
  }
  if (layer.proj > 0 && layer.is_resident(choice.plan))  // anew without the kernels that were refused
    return forward_by_hidden(p, choice, a, r) || forward(host, given, r, choice);
  if (p.launch_resident(choice, a, launch_forward)) return true;
  if (layer.is_ensemble) return false;
  for (int d = 0; d < layer.directions; ++d) stream_forward(p, a, d);
  host.launched(choice);
  return true;
}

}  // namespace

ForwardArgs forward_arguments(const PreparedLayer& p, const ForwardResults& r) {
  ForwardArgs a{};
  static_cast<LayerArgs&>(a) = p.arguments();
  a.output = r.output.data;
  for (int i = 0; i < kMaxStates; ++i) a.last[i] = r.last[i].data;
  a.saved = r.saved.data;
  a.carried = r.carried.data;
  for (int d = 0; d < p.layer.directions; ++d) {
    a.bias_ih[d] = p.layer.bias_ih[d].data;
    a.bias_hh[d] = p.layer.bias_hh[d].data;
  }
  return a;
}

// A transposed input (batch first) is multiplied as it lies; other strides are copied, and so is a part of a transposed
// input and that of an ensemble, whose members the kernels expect one after another.
void project_input(const PreparedLayer& p, int d, const View& pre_gates, ForwardArgs& a) {
  const Layer& layer = p.layer;
  const int64_t width = layer.cell.sizes.gates * layer.hidden, steps = a.rows.steps();
  const int64_t first = p.first_row(a.rows.begin), rows = p.first_row(a.rows.end) - first;
  const int64_t before = first * width * static_cast<int64_t>(element_bytes(layer.acc_dtype()));
  a.pre_gates[d] = static_cast<const char*>(pre_gates.data) - before;
  a.pre_gates_stride_t = layer.batch * width;
  a.pre_gates_stride_b = static_cast<int>(width);
  for (int64_t m = 0; m < layer.members; ++m) {
    View x = layer.of_member(layer.input, m);
    x = layer.batch_sizes ? x.narrow(0, first, rows) : x.narrow(0, a.rows.begin, steps);
    if (!layer.is_ensemble && !layer.batch_sizes && steps == layer.steps && !x.is_contiguous() &&
        is_int(layer.steps * width) && x.transposed().is_contiguous()) {
      x = x.transposed();
      a.pre_gates_stride_t = width;
      a.pre_gates_stride_b = static_cast<int>(layer.steps * width);
    }
    Buffer copy;
    x = contiguous(p.host, "input", x, copy).as({rows, layer.features});
    p.multiply(layer.of_member(pre_gates, m).narrow(0, 0, rows), x,
               layer.of_member(layer.weight_ih[d], m).transposed());
  }
}

void run_forward(Host& host, const Layer& layer, const ForwardResults& r, Choice& choice) {
  if (layer.rows == 0) {
    for (int i = 0; i < layer.cell.sizes.states; ++i) host.copy(r.last[i], layer.initial[i]);
    return;
  }
  if (!layer.is_ensemble) return (void)forward(host, layer, r, choice);
  if (may_run_at_once(layer) && forward(host, layer, r, choice)) return;
  Choice of_member = choose(host, layer.member(0), Pass::kForward);
  for (int64_t m = 0; m < layer.members; ++m) {
    ForwardResults own = r;
    for (View* view : {&own.output, &own.saved, &own.carried}) *view = layer.of_member(*view, m);
    for (View& state : own.last) state = layer.of_member(state, m);
    forward(host, layer.member(m), own, of_member);
  }
}

void run_forward(Host& host, const Layer& layer, const ForwardResults& r) {
  Choice choice = choose(host, layer, Pass::kForward);
  run_forward(host, layer, r, choice);
}

}  // namespace fusedlstm::cuda
