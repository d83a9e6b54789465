// The layer operators on the CPU: tensors to plain argument structs, a plan, and a team that runs the kernels.
#include <algorithm>
#include <cstring>
#include <utility>

#include "call/layer_tensors.h"
#include "isa.h"
#include "team.h"

namespace fusedlstm::cpu {
namespace {

Dtype dtype_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double:
      return Dtype::kFloat64;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Half:
      return Dtype::kFloat16;
    default:
      return Dtype::kFloat32;
  }
}

// What forward and backward kernels are told alike; owns the row tables that the structs point to.
struct LayerInputs {
  LayerTensors t;
  std::vector<int64_t> offsets, lengths;

  explicit LayerInputs(LayerTensors tensors) : t(std::move(tensors)) {
    t.prepare();
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

  State state(const OptionalTensor& s, int64_t member) const {
    if (!s) return {nullptr, 0, 0};
    return {part(*s, member), s->stride(t.lead), s->stride(t.lead + 1)};
  }

  RowData rows_of(const Tensor& x, int64_t member) const {
    if (t.batch_sizes) return {part(x, member), 0, x.stride(t.lead)};
    return {part(x, member), x.stride(t.lead), x.stride(t.lead + 1)};
  }

  // What the kernels are told of one member, but for results.
  template <class Args>
  Args arguments(int64_t member) const {
    Args a{};
    a.shape = {t.steps, t.batch, t.features, t.hidden, t.proj, t.directions};
    a.row_count = t.rows;
    a.rows.offsets = t.batch_sizes ? offsets.data() : nullptr;
    a.rows.lengths = t.batch_sizes ? lengths.data()
                     : t.lengths   ? static_cast<const int64_t*>(part(*t.lengths, member))
                                   : nullptr;
    a.rows.reset = t.reset ? static_cast<const bool*>(part(*t.reset, member)) : nullptr;
    a.rows.reset_step = t.reset ? t.reset->stride(t.lead) : 0;
    a.rows.reset_batch = t.reset ? t.reset->stride(t.lead + 1) : 0;
    a.input = rows_of(t.input, member);
    a.h_0 = state(t.h_0, member);
    a.c_0 = state(t.c_0, member);
    a.reset_h = state(t.reset_h, member);
    a.reset_c = state(t.reset_c, member);
    const auto pointer = [&](const Tensors& list, size_t d) -> const void* {
      return list.empty() ? nullptr : part(list[d], member);
    };
    for (size_t d = 0; d < t.weight_ih.size(); ++d)
      a.weights[d] = {pointer(t.weight_ih, d), pointer(t.weight_hh, d), pointer(t.bias_ih, d), pointer(t.bias_hh, d),
                      pointer(t.weight_hr, d)};
    return a;
  }

  const LayerKernels& kernels() const { return active_kernels().layer[int(dtype_of(t.dtype))]; }
};

// Runs all members, or the one layer that there is, in one launch of a team. Members have the same sizes, and null
// pointers in the same places.
template <class Args>
void run_members(const std::vector<Args>& members, bool training, int64_t (*bytes)(const Args&, const Plan&),
                 void (*run)(const Args&, const Plan&, Share&, char*)) {
  if (members.empty()) return;
  const int64_t count = int64_t(members.size());
  struct Call {
    const std::vector<Args>& members;
    decltype(run) kernel;
    EnsemblePlan plan;
    int64_t bytes_of_thread, bytes_of_team;
  } call{members, run, choose_ensemble_plan(members[0].shape, members[0].row_count, count, training, pool_threads()), 0,
         0};
  if (call.plan.alone > 0) call.bytes_of_thread = bytes(members[0], call.plan.of_thread);
  if (call.plan.alone < count) call.bytes_of_team = bytes(members[0], call.plan.of_team);
  run_team(
      call.plan.threads, call.plan.last_meeting, std::max(call.plan.threads * call.bytes_of_thread, call.bytes_of_team),
      [](void* context, Share share, char* workspace) {
        const Call& c = *static_cast<Call*>(context);
        Share alone{0, 1, 1, nullptr};
        const Range own = share.of(c.plan.alone);
        for (int64_t m = own.begin; m < own.end; ++m)
          c.kernel(c.members[size_t(m)], c.plan.of_thread, alone, workspace + share.first * c.bytes_of_thread);
        for (size_t m = size_t(c.plan.alone); m < c.members.size(); ++m) {
          if (m > 0) share.meet();  // from here on, nobody uses the workspace for an earlier member
          c.kernel(c.members[m], c.plan.of_team, share, workspace);
        }
      },
      &call);
}

struct ForwardResults {
  Tensor output, h_n, c_n, gates, cell_states;
};

ForwardResults forward(LayerTensors tensors, bool training) {
  LayerInputs in(std::move(tensors));
  const LayerTensors& t = in.t;
  const int64_t d = t.directions;
  ForwardResults r;
  r.output = new_tensor(t.input, t.each(t.row_sizes(d * t.recurrent())), t.dtype);
  r.h_n = new_tensor(t.input, t.each({d, t.batch, t.recurrent()}), t.dtype);
  r.c_n = new_tensor(t.input, t.each({d, t.batch, t.hidden}), t.dtype);
  if (training) {
    r.gates = new_tensor(t.input, t.each({d, t.rows, 4 * t.hidden}), t.dtype);
    r.cell_states = new_tensor(t.input, t.each({d, t.rows, t.hidden}), t.acc_dtype());
  }
  std::vector<ForwardArgs> members;
  members.reserve(size_t(t.members));
  for (int64_t m = 0; m < t.members; ++m) {
    ForwardArgs& a = members.emplace_back(in.arguments<ForwardArgs>(m));
    a.output = in.part(r.output, m);
    a.h_n = in.part(r.h_n, m);
    a.c_n = in.part(r.c_n, m);
    a.gates = training ? in.part(r.gates, m) : nullptr;
    a.cell_states = training ? in.part(r.cell_states, m) : nullptr;
  }
  run_members(members, false, in.kernels().forward_bytes, in.kernels().forward);
  return r;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_layer(FUSEDLSTM_LAYER_PARAMETERS) {
  ForwardResults r = forward(FUSEDLSTM_LAYER_TENSORS, true);
  return {std::move(r.output), std::move(r.h_n), std::move(r.c_n), std::move(r.gates), std::move(r.cell_states)};
}

std::tuple<Tensor, Tensor, Tensor> lstm_layer_inference(FUSEDLSTM_LAYER_PARAMETERS) {
  ForwardResults r = forward(FUSEDLSTM_LAYER_TENSORS, false);
  return {std::move(r.output), std::move(r.h_n), std::move(r.c_n)};
}

std::tuple<Tensor, Tensor, Tensor, Tensors, Tensors, Tensors, Tensors, Tensors, Tensor, Tensor> lstm_layer_backward(
    OptionalTensor d_output, OptionalTensor d_h_n, OptionalTensor d_c_n, OptionalTensor d_cell_states,
    FUSEDLSTM_LAYER_PARAMETERS, Tensor output, Tensor gates, Tensor cell_states, std::vector<bool> needs) {
  STD_TORCH_CHECK(needs.size() == kNeeds, "fusedlstm: expected ", int(kNeeds), " needs, got ", needs.size());
  LayerInputs in(FUSEDLSTM_LAYER_TENSORS);
  const LayerTensors& t = in.t;
  const int64_t d = t.directions;
  const auto check_output = [&](const Tensor& y, const char* name) {
    t.like_input(y, t.row_sizes(d * t.recurrent()), name);
  };
  check_output(output, "output");
  t.like_input(gates, {d, t.rows, 4 * t.hidden}, "gates");
  const auto check_cells = [&](const Tensor& cells, const char* name) {
    check_sizes(cells, t.each({d, t.rows, t.hidden}), name);
    STD_TORCH_CHECK(cells.scalar_type() == t.acc_dtype(), "fusedlstm: expected ", name, " of the accumulation dtype");
    t.check_place(cells, name);
  };
  check_cells(cell_states, "cell_states");
  if (d_output) {
    check_output(*d_output, "d_output");
    d_output = unit_stride(*d_output);
  }
  for (auto [grad, size, name] : {std::tuple{&d_h_n, t.recurrent(), "d_h_n"}, {&d_c_n, t.hidden, "d_c_n"}})
    if (*grad) {
      t.like_input(**grad, {d, t.batch, size}, name);
      *grad = unit_stride(**grad);
    }
  if (d_cell_states) {
    check_cells(*d_cell_states, "d_cell_states");
    d_cell_states = dense_after(t.lead, *d_cell_states);
  }
  for (Tensor* saved : {&output, &gates, &cell_states}) *saved = dense_after(t.lead, *saved);

  const auto result = [&](bool needed, const Sizes& sizes) {
    return new_tensor(t.input, needed ? t.each(sizes) : Sizes{0}, t.dtype);
  };
  Tensor d_input = result(needs[kInput], t.row_sizes(t.features));
  Tensor d_h_0 = result(needs[kH0], {d, t.batch, t.recurrent()});
  Tensor d_c_0 = result(needs[kC0], {d, t.batch, t.hidden});
  Tensor d_reset_h = result(needs[kResetH] && t.reset_h, {d, t.batch, t.recurrent()});
  Tensor d_reset_c = result(needs[kResetC] && t.reset_c, {d, t.batch, t.hidden});
  Tensors d_weight_ih, d_weight_hh, d_bias_ih, d_bias_hh, d_weight_hr;
  for (int64_t i = 0; i < d; ++i) {
    d_weight_ih.push_back(result(needs[kWeightIh], {4 * t.hidden, t.features}));
    d_weight_hh.push_back(result(needs[kWeightHh], {4 * t.hidden, t.recurrent()}));
    if (!t.bias_ih.empty()) d_bias_ih.push_back(result(needs[kBiasIh], {4 * t.hidden}));
    if (!t.bias_hh.empty()) d_bias_hh.push_back(result(needs[kBiasHh], {4 * t.hidden}));
    if (t.proj > 0) d_weight_hr.push_back(result(needs[kWeightHr], {t.proj, t.hidden}));
  }
  // The two biases enter as a sum: their gradients are equal, but must not share memory.
  const bool has_d_bias_ih = needs[kBiasIh] && !t.bias_ih.empty(), has_d_bias_hh = needs[kBiasHh] && !t.bias_hh.empty();
  const Tensors& d_bias = has_d_bias_ih ? d_bias_ih : d_bias_hh;

  std::vector<BackwardArgs> members;
  members.reserve(size_t(t.members));
  for (int64_t m = 0; m < t.members; ++m) {
    BackwardArgs& a = members.emplace_back(in.arguments<BackwardArgs>(m));
    if (d_output) a.d_output = in.rows_of(*d_output, m);
    a.d_h_n = in.state(d_h_n, m);
    a.d_c_n = in.state(d_c_n, m);
    a.output = in.part(output, m);
    a.gates = in.part(gates, m);
    a.cell_states = in.part(cell_states, m);
    a.d_cell_states = d_cell_states ? in.part(*d_cell_states, m) : nullptr;
    a.d_input = in.part(d_input, m);
    a.d_h_0 = in.part(d_h_0, m);
    a.d_c_0 = in.part(d_c_0, m);
    a.d_reset_h = in.part(d_reset_h, m);
    a.d_reset_c = in.part(d_reset_c, m);
    for (size_t i = 0; i < size_t(d); ++i) {
      const auto pointer = [&](const Tensors& list) { return list.empty() ? nullptr : in.part(list[i], m); };
      a.d_weight_ih[i] = pointer(d_weight_ih);
      a.d_weight_hh[i] = pointer(d_weight_hh);
      a.d_bias[i] = pointer(d_bias);
      a.d_weight_hr[i] = pointer(d_weight_hr);
    }
  }
  run_members(members, true, in.kernels().backward_bytes, in.kernels().backward);
  if (has_d_bias_ih && has_d_bias_hh)
    for (size_t i = 0; i < size_t(d); ++i)
      std::memcpy(d_bias_hh[i].data_ptr(), d_bias_ih[i].data_ptr(),
                  size_t(t.members * 4 * t.hidden * t.input.element_size()));
  return {std::move(d_input),     std::move(d_h_0),     std::move(d_c_0),     std::move(d_weight_ih),
          std::move(d_weight_hh), std::move(d_bias_ih), std::move(d_bias_hh), std::move(d_weight_hr),
          std::move(d_reset_h),   std::move(d_reset_c)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fusedlstm, CPU, m) {
  m.impl("lstm_layer", TORCH_BOX(&lstm_layer));
  m.impl("lstm_layer_inference", TORCH_BOX(&lstm_layer_inference));
  m.impl("lstm_layer_backward", TORCH_BOX(&lstm_layer_backward));
}

STABLE_TORCH_LIBRARY_IMPL(fusedlstm, CompositeExplicitAutograd, m) {
  m.impl("_cpu_info", TORCH_BOX(&describe));
  m.impl("_cpu_force", TORCH_BOX(&force));
}

}  // namespace fusedlstm::cpu
