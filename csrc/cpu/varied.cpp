// The operators of recurrences with variants on the CPU.
#include "call/implement.h"
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

template <class T>
T* pointer(const OptionalTensor& t) {
  return t ? static_cast<T*>(t->data_ptr()) : nullptr;
}

// What both passes are told.
void set_arguments(VariedArgs& a, const CheckedRecurrence& t, bool is_relu) {
  a.shape = {t.steps, t.batch, 0, t.hidden, 0, 1, t.cell.gates};
  a.row_count = t.steps * t.batch;
  a.rows.lengths = pointer<const int64_t>(t.lengths);
  a.rows.reset = pointer<const bool>(t.reset);
  a.rows.reset_step = t.reset ? t.reset->stride(0) : 0;
  a.rows.reset_batch = t.reset ? t.reset->stride(1) : 0;
  a.is_relu = is_relu;
  a.is_reverse = t.reverse;
  a.eps = t.eps;
  a.from_input = t.from_input.data_ptr();
  a.parameters = {pointer<const void>(t.bias), pointer<const void>(t.weight_ch), pointer<const void>(t.gain),
                  pointer<const void>(t.gain_c), pointer<const void>(t.bias_c)};
  for (size_t k = 0; k < t.initial.size(); ++k) {
    a.initial[k] = state_of(t.initial[k]);
    if (!t.reset_state.empty()) a.reset_state[k] = state_of(t.reset_state[k]);
    if (!t.zoneout.empty()) a.zoneout[k] = factors_of(t.zoneout[k]);
  }
  if (t.mask) a.mask = factors_of(*t.mask);
}

VariedKept kept_of(const Tensors& kept) {
  VariedKept k{};
  if (kept.empty()) return k;
  k.before[0] = kept[kHBefore].data_ptr();
  k.saved = kept[kSavedOfStep].data_ptr();
  k.normed = kept[kNormed].dim() > 1 ? kept[kNormed].data_ptr() : nullptr;
  k.scales = kept[kScales].dim() > 1 ? kept[kScales].data_ptr() : nullptr;
  for (size_t i = kCBefore; i < kept.size(); ++i) k.before[i - kScales] = kept[i].data_ptr();
  return k;
}

template <int kCell>
RecurrenceResults recurrence(RecurrenceArguments& arguments) {
  const NamedCell& named = kCells[kCell];
  const CheckedRecurrence t(std::move(arguments), named.kind);
  const RecurrenceResults r = new_results(t);
  const Tensor transposed = dense(torch::stable::transpose(t.weight_hh, 0, 1));
  std::vector<VariedForwardArgs> layers(1);
  VariedForwardArgs& a = layers[0];
  set_arguments(a, t, named.is_relu);
  a.weight_hh = transposed.data_ptr();
  a.output = r.output.data_ptr();
  for (size_t k = 0; k < r.last.size(); ++k) a.last[k] = r.last[k].data_ptr();
  a.kept = kept_of(r.kept);
  const RecurrenceKernels& kernels = active_recurrence_kernels(t.kind, dtype_of(t.dtype));
  run_members(layers, Pass::kForward, kernels.forward_bytes, kernels.forward);
  return r;
}

template <int kCell>
RecurrenceGradients recurrence_backward(RecurrenceBackwardArguments& given) {
  const NamedCell& named = kCells[kCell];
  const CheckedRecurrence t(std::move(given.recurrence), named.kind);
  check_incoming(given, t);
  const RecurrenceGradients g = new_gradients(t);
  std::vector<VariedBackwardArgs> layers(1);
  VariedBackwardArgs& a = layers[0];
  set_arguments(a, t, named.is_relu);
  a.weight_hh = t.weight_hh.data_ptr();
  a.kept = kept_of(given.kept);
  if (given.d_output) a.d_output = {given.d_output->data_ptr(), t.batch * t.hidden, t.hidden};
  a.d_from_input = g.from_input.data_ptr();
  a.d_from_hidden = t.has_apart() ? g.from_hidden.data_ptr() : nullptr;
  for (size_t k = 0; k < t.initial.size(); ++k) {
    if (given.d_last[k]) a.d_last[k] = state_of(*given.d_last[k]);
    a.d_initial[k] = g.initial[k].data_ptr();
    if (!t.reset_state.empty()) a.d_reset_state[k] = g.reset_state[k].data_ptr();
  }
  const auto of_parameter = [&](size_t k) {
    return g.parameters[k].size(0) > 0 ? g.parameters[k].data_ptr() : nullptr;
  };
  a.d_parameters = {of_parameter(0), of_parameter(1), of_parameter(2), of_parameter(3), of_parameter(4)};
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

STABLE_TORCH_LIBRARY_IMPL(FUSEDLSTM_NAMESPACE, CPU, m) {
  implement_from(m);
}

}  // namespace fusedlstm::cpu
