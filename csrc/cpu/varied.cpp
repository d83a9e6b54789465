// The operators of recurrences with variants on the CPU.
#include "call/implement.h"
#include "isa.h"
#include "operators.h"
#include "run_members.h"

namespace fusedlstm::cpu {
namespace {

State state_of(const Tensor& t) {
  return {t.data_ptr(), 0, t.size(1)};
}

RowData factors_of(const Tensor& t) {
  const int64_t row = t.size(2);
  return {t.data_ptr(), t.size(0) > 1 ? t.size(1) * row : 0, t.size(1) > 1 ? row : 0};
}

Zoneout zoneout_of(const Tensor& t) {
  return {factors_of(t), t.scalar_type() == ScalarType::Bool};
}

template <class T>
T* pointer(const OptionalTensor& t) {
  return t ? static_cast<T*>(t->data_ptr()) : nullptr;
}

VariedKept kept_of(const Tensors& kept) {
  const auto pointer = [&](size_t i) { return kept[i].dim() > 1 ? kept[i].data_ptr() : nullptr; };
  VariedKept k{};
  if (kept.empty()) return k;
  k.before[0] = pointer(kHBefore);
  k.entered = pointer(kEntered);
  k.saved = pointer(kSavedOfStep);
  k.normed_ih = pointer(kNormedIh);
  k.normed = pointer(kNormed);
  k.scales = pointer(kScales);
  for (size_t i = kCBefore; i < kept.size(); ++i) k.before[i - kScales] = pointer(i);
  return k;
}

// What both passes are told.
template <class Args>
Args arguments_of(const CheckedRecurrence& t, bool is_relu, const Tensors& kept) {
  Args a{};
  a.shape = {t.steps, t.batch, t.features, t.hidden, 0, 1, t.cell.gates};
  a.row_count = t.steps * t.batch;
  a.rows.lengths = pointer<const int64_t>(t.lengths);
  a.rows.reset = pointer<const bool>(t.reset);
  a.rows.reset_step = t.reset ? t.reset->stride(0) : 0;
  a.rows.reset_batch = t.reset ? t.reset->stride(1) : 0;
  a.input = {t.input.data_ptr(), t.input.stride(0), t.input.stride(1)};
  a.weights[0].ih = t.weight_ih.data_ptr();
  a.weights[0].hh = t.weight_hh.data_ptr();
  a.is_relu = is_relu;
  a.is_reverse = t.reverse;
  a.eps = t.eps;
  a.parameters = {pointer<const void>(t.bias_ih), pointer<const void>(t.bias), pointer<const void>(t.weight_ch),
                  pointer<const void>(t.gain_ih), pointer<const void>(t.gain), pointer<const void>(t.gain_c),
                  pointer<const void>(t.bias_c)};
  for (size_t k = 0; k < t.initial.size(); ++k) {
    a.initial[k] = state_of(t.initial[k]);
    if (!t.reset_state.empty()) a.reset_state[k] = state_of(t.reset_state[k]);
    if (!t.zoneout.empty()) a.zoneout[k] = zoneout_of(t.zoneout[k]);
  }
  if (t.mask) a.mask = factors_of(*t.mask);
  a.kept = kept_of(kept);
  return a;
}

template <int kCell>
RecurrenceResults recurrence(RecurrenceArguments& arguments) {
  const NamedCell& named = kCells[kCell];
  const CheckedRecurrence t(std::move(arguments), named.kind);
  const RecurrenceResults r = new_results(t);
  std::vector<VariedForwardArgs> layers{arguments_of<VariedForwardArgs>(t, named.is_relu, r.kept)};
  layers[0].output = r.output.data_ptr();
  for (size_t k = 0; k < r.last.size(); ++k) layers[0].last[k] = r.last[k].data_ptr();
  const RecurrenceKernels& kernels = active_recurrence_kernels(t.kind, dtype_of(t.dtype));
  run_members(layers, Pass::kForward, kernels.forward_bytes, kernels.forward);
  return r;
}

template <int kCell>
RecurrenceGradients recurrence_backward(RecurrenceBackwardArguments& given) {
  const NamedCell& named = kCells[kCell];
  const CheckedRecurrence t(std::move(given.recurrence), named.kind);
  check_incoming(given, t);
  const RecurrenceGradients g = new_gradients(t, given.needs);
  std::vector<VariedBackwardArgs> layers{arguments_of<VariedBackwardArgs>(t, named.is_relu, given.kept)};
  VariedBackwardArgs& a = layers[0];
  if (given.d_output) a.d_output = {given.d_output->data_ptr(), t.batch * t.hidden, t.hidden};
  a.entered = a.kept.entered ? a.kept.entered : a.kept.before[0];
  for (size_t k = 0; k < t.initial.size(); ++k) {
    if (given.d_last[k]) a.d_last[k] = state_of(*given.d_last[k]);
    a.d_initial[k] = g.initial[k].data_ptr();
    if (!t.reset_state.empty()) a.d_reset_state[k] = g.reset_state[k].data_ptr();
  }
  const auto result = [](const Tensor& d, bool is_there) { return is_there ? d.data_ptr() : nullptr; };
  a.d_input = result(g.input, given.needs[0]);
  a.d_weight_ih[0] = result(g.weight_ih, given.needs[1]);
  a.d_weight_hh[0] = result(g.weight_hh, given.needs[2]);
  const OptionalTensor* parameters[] = {&t.bias_ih, &t.bias, &t.weight_ch, &t.gain_ih, &t.gain, &t.gain_c, &t.bias_c};
  const auto of_parameter = [&](size_t k) { return result(g.parameters[k], parameters[k]->has_value()); };
  a.d_bias_ih[0] = of_parameter(0);
  // A bias of normalised sums is before the norm on the way back, and not in the sums' gradients.
  if (!t.gain) (t.has_apart() ? a.d_bias_hh : a.d_bias_ih)[0] = of_parameter(1);
  a.d_parameters = {nullptr,         t.gain ? of_parameter(1) : nullptr,
                    of_parameter(2), of_parameter(3),
                    of_parameter(4), of_parameter(5),
                    of_parameter(6)};
  const RecurrenceKernels& kernels = active_recurrence_kernels(t.kind, dtype_of(t.dtype));
  run_members(layers, Pass::kBackward, kernels.backward_bytes, kernels.backward);
  return g;
}

// The operators of a cell, and of those after it.
template <int kCell = 0>
void implement_from(torch::stable::detail::StableLibrary& m) {
  if constexpr (kCell < int(std::size(kCells))) {
    implement_recurrence<kCell, recurrence<kCell>, recurrence_backward<kCell>>(m);
    implement_from<kCell + 1>(m);
  }
}

}  // namespace

void implement_recurrences(torch::stable::detail::StableLibrary& m) {
  implement_from(m);
}

}  // namespace fusedlstm::cpu
