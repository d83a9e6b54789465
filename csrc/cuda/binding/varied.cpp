// The operators of recurrences with variants on CUDA.
#include "cuda/host/varied.h"

#include <iterator>

#include "call/implement.h"
#include "on_device.h"
#include "operators.h"
#include "torch_host.h"

namespace fusedlstm::cuda {
namespace {

// What follows is views of tensors, as the host code takes them: they must not outlive the tensors. Of an empty tensor,
// which stands for none, the view has no data.

// With `reset` dense, as the kernels read it.
CheckedRecurrence checked(const NamedCell& cell, RecurrenceArguments& arguments) {
  CheckedRecurrence t(std::move(arguments), cell.kind);
  if (t.reset) t.reset = dense(*t.reset);
  return t;
}

VariedRecurrence recurrence_of(const NamedCell& cell, const CheckedRecurrence& t) {
  VariedRecurrence r{};
  r.cell = cell;
  r.dtype = dtype_of(t.dtype);
  r.allow_tf32 = t.allow_tf32;
  r.is_reverse = t.reverse;
  r.eps = t.eps;
  r.steps = t.steps;
  r.batch = t.batch;
  r.hidden = t.hidden;
  r.input = view_of(t.input, r.dtype);
  view_each(t.initial, r.dtype, r.initial);
  r.weight_ih = view_of(t.weight_ih, r.dtype);
  r.weight_hh = view_of(t.weight_hh, r.dtype);
  r.bias_ih = view_of(t.bias_ih, r.dtype);
  r.bias = view_of(t.bias, r.dtype);
  r.mask = view_of(t.mask, r.dtype);
  for (size_t k = 0; k < t.zoneout.size(); ++k)
    r.zoneout[k] = {view_of(t.zoneout[k], r.dtype), t.zoneout[k].scalar_type() == ScalarType::Bool};
  r.weight_ch = view_of(t.weight_ch, r.dtype);
  r.gain_ih = view_of(t.gain_ih, r.dtype);
  r.gain = view_of(t.gain, r.dtype);
  r.gain_c = view_of(t.gain_c, r.dtype);
  r.bias_c = view_of(t.bias_c, r.dtype);
  r.lengths = t.lengths ? t.lengths->const_data_ptr<int64_t>() : nullptr;
  r.reset = t.reset ? t.reset->const_data_ptr<bool>() : nullptr;
  view_each(t.reset_state, r.dtype, r.reset_state);
  return r;
}

void set_kept(VariedKept& views, const Tensors& kept, Dtype dtype) {
  if (kept.empty()) return;
  views.before[0] = view_of(kept[kHBefore], dtype);
  views.entered = view_of(kept[kEntered], dtype);
  views.saved = view_of(kept[kSavedOfStep], dtype);
  views.normed_ih = view_of(kept[kNormedIh], dtype);
  views.normed = view_of(kept[kNormed], dtype);
  views.scales = view_of(kept[kScales], dtype);
  for (size_t i = kCBefore; i < kept.size(); ++i) views.before[i - kScales] = view_of(kept[i], dtype);
}

RecurrenceResults forward(const NamedCell& cell, RecurrenceArguments& arguments) {
  const CheckedRecurrence t = checked(cell, arguments);
  RecurrenceResults r = new_results(t);
  const VariedRecurrence recurrence = recurrence_of(cell, t);
  VariedResults results;
  results.output = view_of(r.output, recurrence.dtype);
  view_each(r.last, recurrence.dtype, results.last);
  set_kept(results, r.kept, recurrence.dtype);
  TorchHost host(t.input.get_device());
  run_varied_forward(host, recurrence, results);
  return r;
}

RecurrenceGradients backward(const NamedCell& cell, RecurrenceBackwardArguments& given) {
  const CheckedRecurrence t = checked(cell, given.recurrence);
  check_incoming(given, t);
  RecurrenceGradients g = new_gradients(t, given.needs);
  const VariedRecurrence recurrence = recurrence_of(cell, t);
  VariedIncoming in;
  in.d_output = view_of(given.d_output, recurrence.dtype);
  view_each(given.d_last, recurrence.dtype, in.d_last);
  set_kept(in, given.kept, recurrence.dtype);
  VariedGradients gradients;
  gradients.input = view_of(g.input, recurrence.dtype);
  gradients.weight_ih = view_of(g.weight_ih, recurrence.dtype);
  gradients.weight_hh = view_of(g.weight_hh, recurrence.dtype);
  view_each(g.initial, recurrence.dtype, gradients.initial);
  view_each(g.reset_state, recurrence.dtype, gradients.reset_state);
  View* parameters[] = {&gradients.bias_ih, &gradients.bias,   &gradients.weight_ch, &gradients.gain_ih,
                        &gradients.gain,    &gradients.gain_c, &gradients.bias_c};
  for (size_t k = 0; k < g.parameters.size(); ++k) *parameters[k] = view_of(g.parameters[k], recurrence.dtype);
  TorchHost host(t.input.get_device());
  run_varied_backward(host, recurrence, in, gradients);
  return g;
}

template <int kCell>
RecurrenceResults recurrence(RecurrenceArguments& arguments) {
  return on_device(arguments.input.get_device(), [&] { return forward(kCells[kCell], arguments); });
}

template <int kCell>
RecurrenceGradients recurrence_backward(RecurrenceBackwardArguments& given) {
  return on_device(given.recurrence.input.get_device(), [&] { return backward(kCells[kCell], given); });
}

// The operators of a cell, and of those after it.
template <int kCell = 0>
void implement_from(torch::stable::detail::StableLibrary& m) {
  if constexpr (kCell < static_cast<int>(std::size(kCells))) {
    implement_recurrence<kCell, recurrence<kCell>, recurrence_backward<kCell>>(m);
    implement_from<kCell + 1>(m);
  }
}

}  // namespace

void implement_recurrences(torch::stable::detail::StableLibrary& m) {
  implement_from(m);
}

}  // namespace fusedlstm::cuda
