// The operators of recurrences with variants on the CPU.
#include "call/boxed.h"
#include "call/recurrence.h"
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

// The sizes of a row of each of `kept`; 0 for what there is none of.
std::vector<int64_t> kept_widths(const CheckedRecurrence& t) {
  std::vector<int64_t> widths{t.hidden, saved_of(t.kind) * t.hidden, t.gain ? t.gates : 0,
                              t.gain || t.gain_c ? kVariedScales : 0};
  widths.resize(size_t(kScales + t.cell.states), t.hidden);
  return widths;
}

template <int kCell>
RecurrenceResults recurrence(RecurrenceArguments& arguments) {
  const NamedCell& named = kCells[kCell];
  const CheckedRecurrence t(std::move(arguments), named.kind);
  RecurrenceResults r;
  r.output = t.rows(t.hidden);
  for (const Tensor& state : t.initial) r.last.push_back(new_tensor(state, {t.batch, t.hidden}, t.dtype));
  if (t.keeps)
    for (const int64_t width : kept_widths(t)) r.kept.push_back(width > 0 ? t.rows(width) : t.none());
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
  const std::vector<int64_t> widths = kept_widths(t);
  STD_TORCH_CHECK(given.kept.size() == widths.size(), "fusedlstm: expected ", widths.size(), " kept, got ",
                  given.kept.size());
  for (size_t i = 0; i < widths.size(); ++i)
    if (widths[i] > 0) t.check(given.kept[i], {t.steps, t.batch, widths[i]}, "kept");
  STD_TORCH_CHECK(given.d_last.size() == t.initial.size(), "fusedlstm: expected ", t.initial.size(), " d_last, got ",
                  given.d_last.size());
  std::vector<VariedBackwardArgs> layers(1);
  VariedBackwardArgs& a = layers[0];
  set_arguments(a, t, named.is_relu);
  a.weight_hh = t.weight_hh.data_ptr();
  a.kept = kept_of(given.kept);
  t.check(given.d_output, {t.steps, t.batch, t.hidden}, "d_output");
  if (given.d_output) a.d_output = {given.d_output->data_ptr(), t.batch * t.hidden, t.hidden};

  RecurrenceGradients g;
  g.from_input = t.rows(t.gates);
  const bool is_apart = t.kind == VariedKind::kGru || (t.kind == VariedKind::kLstm && t.gain);
  g.from_hidden = is_apart ? t.rows(t.gates) : t.none();
  a.d_from_input = g.from_input.data_ptr();
  a.d_from_hidden = g.from_hidden.dim() > 1 ? g.from_hidden.data_ptr() : nullptr;
  for (size_t k = 0; k < t.initial.size(); ++k) {
    t.check(given.d_last[k], {t.batch, t.hidden}, "d_last");
    if (given.d_last[k]) a.d_last[k] = state_of(*given.d_last[k]);
    g.initial.push_back(new_tensor(t.from_input, {t.batch, t.hidden}, t.dtype));
    a.d_initial[k] = g.initial[k].data_ptr();
    if (t.reset_state.empty()) continue;
    g.reset_state.push_back(new_tensor(t.from_input, {t.batch, t.hidden}, t.dtype));
    a.d_reset_state[k] = g.reset_state[k].data_ptr();
  }
  const auto of_parameter = [&](const OptionalTensor& parameter) -> void* {
    g.parameters.push_back(parameter ? new_tensor(*parameter, {parameter->size(0)}, t.dtype) : t.none());
    return parameter ? g.parameters.back().data_ptr() : nullptr;
  };
  a.d_parameters.bias = of_parameter(t.bias);
  a.d_parameters.weight_ch = of_parameter(t.weight_ch);
  a.d_parameters.gain = of_parameter(t.gain);
  a.d_parameters.gain_c = of_parameter(t.gain_c);
  a.d_parameters.bias_c = of_parameter(t.bias_c);
  const RecurrenceKernels& kernels = active_recurrence_kernels(t.kind, dtype_of(t.dtype));
  run_members(layers, Pass::kBackward, kernels.backward_bytes, kernels.backward);
  return g;
}

// The operators of a cell, and of those after it.
template <int kCell = 0>
void implement_from(torch::stable::detail::StableLibrary& m) {
  if constexpr (kCell < int(std::size(kCells))) {
    const std::string cell = kCells[kCell].name;
    m.impl((cell + "_recurrence").c_str(), boxed<RecurrenceResults, RecurrenceArguments, recurrence<kCell>>);
    m.impl((cell + "_recurrence_backward").c_str(),
           boxed<RecurrenceGradients, RecurrenceBackwardArguments, recurrence_backward<kCell>>);
    implement_from<kCell + 1>(m);
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(FUSEDLSTM_NAMESPACE, CPU, m) {
  implement_from(m);
}

}  // namespace fusedlstm::cpu
