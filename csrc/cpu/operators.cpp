// The layer operators on the CPU: tensors to plain argument structs, a plan, and a team that runs the kernels.
#include <algorithm>
#include <cstring>
#include <utility>

#include "call/checked_steps.h"
#include "call/implement.h"
#include "call/results.h"
#include "cells/all.h"
#include "frozen.h"
#include "quantized.h"
#include "run_members.h"

namespace fusedlstm::cpu {
namespace {

// What forward and backward kernels are told alike; owns the row tables that the structs point to.
struct LayerInputs {
  const NamedCell& cell;
  const CheckedLayer t;
  std::vector<int64_t> offsets, lengths;

  LayerInputs(const NamedCell& cell, CheckedLayer checked) : cell(cell), t(std::move(checked)) {
    if (t.batch_sizes) {
      const auto* sizes = t.batch_sizes->const_data_ptr<int64_t>();
      offsets.assign(1, 0);
      lengths.assign(size_t(t.batch), 0);
      for (int64_t s = 0; s < t.steps; ++s) {
        offsets.push_back(offsets.back() + sizes[s]);
        for (int64_t b = 0; b < sizes[s]; ++b) ++lengths[size_t(b)];
      }
    } else if (t.lengths) {
      const auto* given = t.lengths->const_data_ptr<int64_t>();
      for (int64_t b = 0; b < t.members * t.batch; ++b)
        STD_TORCH_CHECK(given[b] >= 0 && given[b] <= t.steps, "fusedlstm: expected lengths between 0 and ", t.steps,
                        ", got ", given[b], " at index ", b);
    }
  }

  // Where a member's part of a tensor begins; null if the tensor is empty.
  void* part(const Tensor& x, int64_t member) const {
    auto* data = static_cast<char*>(x.data_ptr());
    return data && t.lead > 0 ? data + member * x.stride(0) * x.element_size() : data;
  }
  void* part(const Tensors& list, size_t index, int64_t member) const {
    return list.empty() ? nullptr : part(list[index], member);
  }

  State state(const Tensor& s, int64_t member) const {
    return {part(s, member), s.stride(t.lead), s.stride(t.lead + 1)};
  }
  State state(const OptionalTensor& s, int64_t member) const { return s ? state(*s, member) : State{}; }

  RowData rows_of(const Tensor& x, int64_t member) const {
    if (t.batch_sizes) return {part(x, member), 0, x.stride(t.lead)};
    return {part(x, member), x.stride(t.lead), x.stride(t.lead + 1)};
  }

  // What the kernels are told of one member, but for results.
  template <class Args>
  Args arguments(int64_t member) const {
    Args a{};
    a.shape = {t.steps, t.batch, t.features, t.hidden, t.proj, t.directions, cell.sizes.gates};
    a.row_count = t.rows;
    a.rows.offsets = t.batch_sizes ? offsets.data() : nullptr;
    a.rows.lengths = t.batch_sizes ? lengths.data()
                     : t.lengths   ? static_cast<const int64_t*>(part(*t.lengths, member))
                                   : nullptr;
    a.rows.reset = t.reset ? static_cast<const bool*>(part(*t.reset, member)) : nullptr;
    a.rows.reset_step = t.reset ? t.reset->stride(t.lead) : 0;
    a.rows.reset_batch = t.reset ? t.reset->stride(t.lead + 1) : 0;
    a.input = rows_of(t.input, member);
    for (size_t i = 0; i < t.initial.size(); ++i) {
      a.initial[i] = state(t.initial[i], member);
      if (!t.reset_state.empty()) a.reset_state[i] = state(t.reset_state[i], member);
    }
    a.is_relu = cell.is_relu;
    for (size_t d = 0; d < t.weight_ih.size(); ++d)
      a.weights[d] = {part(t.weight_ih, d, member), part(t.weight_hh, d, member), part(t.bias_ih, d, member),
                      part(t.bias_hh, d, member), part(t.weight_hr, d, member)};
    return a;
  }

  const LayerKernels& kernels() const { return active_kernels(cell.kind, dtype_of(t.dtype)); }
};

// Where a member's results go, which inference and training have.
void set_results(ForwardArgs& a, const LayerInputs& in, const LayerResults& r, int64_t member) {
  a.output = in.part(r.output, member);
  for (size_t i = 0; i < r.last.size(); ++i) a.last[i] = in.part(r.last[i], member);
}

// frozen: the panels of a layer's weights, null where it has weights.
LayerResults forward(const LayerInputs& in, const LayerKernels& kernels, const char* frozen, bool is_training) {
  const CheckedLayer& t = in.t;
  LayerResults r = new_results(t, is_training, false);
  std::vector<ForwardArgs> members;
  members.reserve(size_t(t.members));
  for (int64_t m = 0; m < t.members; ++m) {
    ForwardArgs& a = members.emplace_back(in.arguments<ForwardArgs>(m));
    a.frozen = frozen;
    set_results(a, in, r, m);
    a.saved = is_training ? in.part(r.saved, m) : nullptr;
    a.carried = is_training ? in.part(r.carried, m) : nullptr;
  }
  run_members(members, frozen ? Pass::kFrozen : Pass::kForward, kernels.forward_bytes, kernels.forward);
  return r;
}

template <int kCell>
LayerInputs inputs_of(LayerArguments& arguments) {
  return {kCells[kCell], CheckedLayer(std::move(arguments), kCells[kCell].sizes)};
}

// The arguments of a layer whose weights come in a form of their own.
template <class Arguments>
LayerArguments without_weights(Arguments& given) {
  LayerArguments layer;
  layer.input = std::move(given.input);
  layer.initial = std::move(given.initial);
  layer.batch_sizes = std::move(given.batch_sizes);
  layer.lengths = std::move(given.lengths);
  layer.reset = std::move(given.reset);
  layer.reset_state = std::move(given.reset_state);
  layer.last = std::move(given.last);
  return layer;
}

template <int kCell>
LayerResults layer(LayerArguments& arguments) {
  const LayerInputs in = inputs_of<kCell>(arguments);
  return forward(in, in.kernels(), nullptr, true);
}

template <int kCell>
InferenceResults layer_inference(LayerArguments& arguments) {
  const LayerInputs in = inputs_of<kCell>(arguments);
  LayerResults r = forward(in, in.kernels(), nullptr, false);
  return {std::move(r.output), std::move(r.last)};
}

template <int kCell>
FreezeResults freeze_layer(FreezeArguments& weights) {
  // As those of a layer that runs no steps of no batch.
  STD_TORCH_CHECK(!weights.weight_ih.empty() && !weights.weight_hh.empty() && weights.weight_ih[0].dim() == 2 &&
                      weights.weight_hh[0].dim() == 2,
                  "fusedlstm: expected weight_ih and weight_hh with 2 dimensions");
  const CellSizes cell = kCells[kCell].sizes;
  const Tensor &ih = weights.weight_ih[0], &hh = weights.weight_hh[0];
  const auto empty = [&](const Sizes& sizes) { return new_tensor(ih, sizes, ih.scalar_type()); };
  LayerArguments layer;
  layer.input = empty({0, 0, ih.size(1)});
  for (int i = 0; i < cell.states; ++i)
    layer.initial.push_back(
        empty({int64_t(weights.weight_ih.size()), 0, i == 0 ? hh.size(1) : hh.size(0) / cell.gates}));
  layer.weight_ih = std::move(weights.weight_ih);
  layer.weight_hh = std::move(weights.weight_hh);
  layer.bias_ih = std::move(weights.bias_ih);
  layer.bias_hh = std::move(weights.bias_hh);
  layer.weight_hr = std::move(weights.weight_hr);
  const LayerInputs in = inputs_of<kCell>(layer);
  return {freeze(in.t, in.arguments<LayerArgs>(0), kCell, dtype_of(in.t.dtype))};
}

template <int kCell>
InferenceResults layer_frozen(FrozenArguments& given) {
  const FrozenWeights weights = FrozenWeights::of(given.weights, kCell);
  const LayerInputs in(kCells[kCell], CheckedLayer(without_weights(given), kCells[kCell].sizes, weights.sizes));
  LayerResults r = forward(in, weights.kernels, weights.panels, false);
  return {std::move(r.output), std::move(r.last)};
}

template <int kCell>
InferenceResults layer_quantized(QuantizedArguments& given) {
  const NamedCell& cell = kCells[kCell];
  STD_TORCH_CHECK(given.input.dim() > 0, "fusedlstm: expected input with features, got a number");
  const CheckedQuantized weights(given.weights, cell, given.input.size(given.input.dim() - 1));
  const LayerInputs in(cell, CheckedLayer(without_weights(given), cell.sizes, weights.sizes));
  LayerResults r = new_results(in.t, false, false);
  std::vector<QuantizedArgs> layers(1);
  static_cast<ForwardArgs&>(layers[0]) = in.arguments<ForwardArgs>(0);
  set_results(layers[0], in, r, 0);
  std::copy(std::begin(weights.weights), std::end(weights.weights), layers[0].quantized);
  const QuantizedLayerKernels& kernels = active_quantized_kernels(cell.kind, weights.is_reduced);
  run_members(layers, Pass::kQuantized, kernels.forward_bytes, kernels.forward);
  return {std::move(r.output), std::move(r.last)};
}

template <int kCell>
LayerGradients layer_backward(BackwardArguments& arguments) {
  const LayerInputs in = inputs_of<kCell>(arguments.layer);
  const CheckedLayer& t = in.t;
  const CheckedIncoming incoming(arguments, t);
  LayerGradients g = new_gradients(t, arguments.needs);
  // Where no gate is apart, the two biases enter as a sum: their gradients are equal, but must not share memory.
  const auto& needs = arguments.needs;
  const bool has_bias_ih = needs[kBiasIh] && !t.bias_ih.empty(), has_bias_hh = needs[kBiasHh] && !t.bias_hh.empty();
  const bool is_joined = t.cell.apart() == 0;
  const Tensors& d_bias_ih = has_bias_ih || !is_joined ? g.bias_ih : g.bias_hh;

  std::vector<BackwardArgs> members;
  members.reserve(size_t(t.members));
  for (int64_t m = 0; m < t.members; ++m) {
    BackwardArgs& a = members.emplace_back(in.arguments<BackwardArgs>(m));
    if (incoming.d_output) a.d_output = in.rows_of(*incoming.d_output, m);
    for (size_t i = 0; i < t.initial.size(); ++i) {
      a.d_last[i] = in.state(incoming.d_last[i], m);
      a.d_initial[i] = in.part(g.initial[i], m);
      a.d_reset_state[i] = in.part(g.reset_state, i, m);
    }
    a.output = in.part(incoming.output, m);
    a.saved = in.part(incoming.saved, m);
    a.carried = in.part(incoming.carried, m);
    a.d_carried = incoming.d_carried ? in.part(*incoming.d_carried, m) : nullptr;
    a.d_input = in.part(g.input, m);
    for (size_t d = 0; d < size_t(t.directions); ++d) {
      a.d_weight_ih[d] = in.part(g.weight_ih, d, m);
      a.d_weight_hh[d] = in.part(g.weight_hh, d, m);
      a.d_bias_ih[d] = in.part(d_bias_ih, d, m);
      a.d_bias_hh[d] = is_joined ? nullptr : in.part(g.bias_hh, d, m);
      a.d_weight_hr[d] = in.part(g.weight_hr, d, m);
    }
  }
  run_members(members, Pass::kBackward, in.kernels().backward_bytes, in.kernels().backward);
  if (is_joined && has_bias_ih && has_bias_hh)
    for (size_t d = 0; d < size_t(t.directions); ++d)
      std::memcpy(g.bias_hh[d].data_ptr(), g.bias_ih[d].data_ptr(),
                  size_t(g.bias_ih[d].numel() * g.bias_ih[d].element_size()));
  return g;
}

template <int kCell>
StepsResults steps_second_order(StepsArguments& arguments) {
  const NamedCell& cell = kCells[kCell];
  const CheckedSteps t(std::move(arguments), cell.sizes);
  const StepsResults r = new_results(t);
  const StepsArgs a = args_of(t, r, cell.is_relu);
  struct Call {
    const StepsArgs& args;
    decltype(LayerKernels::second_order) kernel;
  } call{a, active_kernels(cell.kind, dtype_of(t.dtype)).second_order};
  run_team(
      threads_of_steps(t.rows * t.hidden), 0, 0,
      [](void* context, Share share, char*) {
        const Call& c = *static_cast<Call*>(context);
        c.kernel(c.args, share.of(c.args.rows));
      },
      &call);
  return r;
}

// The operators of a cell, and of those after it.
template <int kCell = 0>
void implement_from(torch::stable::detail::StableLibrary& m) {
  if constexpr (kCell < int(std::size(kCells))) {
    implement<kCell, layer<kCell>, layer_inference<kCell>, layer_backward<kCell>, steps_second_order<kCell>>(m);
    const std::string cell = kCells[kCell].name;
    m.impl((cell + "_freeze").c_str(), boxed<FreezeResults, FreezeArguments, freeze_layer<kCell>>);
    m.impl((cell + "_layer_frozen").c_str(), boxed<InferenceResults, FrozenArguments, layer_frozen<kCell>>);
    m.impl((cell + "_cell_frozen").c_str(),
           boxed<StepInferenceResults, PreparedStepArguments<Tensor>, one_step_prepared<Tensor, layer_frozen<kCell>>>);
    m.impl((cell + "_layer_quantized").c_str(), boxed<InferenceResults, QuantizedArguments, layer_quantized<kCell>>);
    m.impl((cell + "_cell_quantized").c_str(), boxed<StepInferenceResults, PreparedStepArguments<Tensors>,
                                                     one_step_prepared<Tensors, layer_quantized<kCell>>>);
    m.impl((cell + "_stack_frozen").c_str(),
           boxed<InferenceResults, PreparedStackArguments, run_stack_prepared<Tensor, layer_frozen<kCell>>>);
    m.impl((cell + "_stack_quantized").c_str(),
           boxed<InferenceResults, PreparedStackArguments, run_stack_prepared<Tensors, layer_quantized<kCell>>>);
    implement_from<kCell + 1>(m);
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(FUSEDLSTM_NAMESPACE, CPU, m) {
  implement_from(m);
}

STABLE_TORCH_LIBRARY_IMPL(FUSEDLSTM_NAMESPACE, CompositeExplicitAutograd, m) {
  m.impl("_cpu_info", TORCH_BOX(&describe));
  m.impl("_cpu_force", TORCH_BOX(&force));
}

}  // namespace fusedlstm::cpu
