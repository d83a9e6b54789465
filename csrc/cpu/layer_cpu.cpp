// The layer operators on the CPU: tensors to plain argument structs, a plan, and a team that runs the kernels.
#include <cstring>
#include <utility>

#include "../layer_tensors.h"
#include "isa.h"
#include "layer.h"
#include "team.h"

namespace fusedlstm::cpu {
namespace {

DType dtype_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      return DType::kFloat32;
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
      for (int64_t b = 0; b < t.batch; ++b)
        STD_TORCH_CHECK(given[b] >= 0 && given[b] <= t.steps, "fusedlstm: expected lengths between 0 and ", t.steps,
                        ", got ", given[b], " at index ", b);
    }
  }

  static State state(const OptionalTensor& s) {
    if (!s) return {nullptr, 0, 0};
    return {s->data_ptr(), s->stride(0), s->stride(1)};
  }

  RowData rows_of(const Tensor& x) const {
    return t.batch_sizes ? RowData{x.data_ptr(), 0, x.stride(0)} : RowData{x.data_ptr(), x.stride(0), x.stride(1)};
  }

  template <class Args>
  void fill(Args& a) const {
    a.shape = {t.steps, t.batch, t.features, t.hidden, t.proj, t.directions};
    a.row_count = t.rows;
    a.rows.offsets = t.batch_sizes ? offsets.data() : nullptr;
    a.rows.lengths = t.batch_sizes ? lengths.data() : t.lengths ? t.lengths->const_data_ptr<int64_t>() : nullptr;
    a.rows.reset = t.reset ? t.reset->const_data_ptr<bool>() : nullptr;
    a.rows.reset_step = t.reset ? t.reset->stride(0) : 0;
    a.rows.reset_batch = t.reset ? t.reset->stride(1) : 0;
    a.input = rows_of(t.input);
    a.h_0 = state(t.h_0);
    a.c_0 = state(t.c_0);
    a.reset_h = state(t.reset_h);
    a.reset_c = state(t.reset_c);
    const auto pointer = [](const Tensors& list, size_t d) -> const void* {
      return list.empty() ? nullptr : list[d].data_ptr();
    };
    for (size_t d = 0; d < t.weight_ih.size(); ++d)
      a.weights[d] = {pointer(t.weight_ih, d), pointer(t.weight_hh, d), pointer(t.bias_ih, d), pointer(t.bias_hh, d),
                      pointer(t.weight_hr, d)};
  }

  const LayerKernels& kernels() const { return active_kernels().layer[int(dtype_of(t.dtype))]; }
};

struct ForwardResults {
  Tensor output, h_n, c_n, gates, cell_states;
};

ForwardResults forward(LayerTensors tensors, bool training) {
  LayerInputs in(std::move(tensors));
  const LayerTensors& t = in.t;
  const int64_t d = t.directions;
  ForwardResults r;
  r.output = t.batch_sizes ? new_tensor(t.input, {t.rows, d * t.recurrent()}, t.dtype)
                           : new_tensor(t.input, {t.steps, t.batch, d * t.recurrent()}, t.dtype);
  r.h_n = new_tensor(t.input, {d, t.batch, t.recurrent()}, t.dtype);
  r.c_n = new_tensor(t.input, {d, t.batch, t.hidden}, t.dtype);
  ForwardArgs a{};
  in.fill(a);
  a.output = r.output.data_ptr();
  a.h_n = r.h_n.data_ptr();
  a.c_n = r.c_n.data_ptr();
  if (training) {
    r.gates = new_tensor(t.input, {d, t.rows, 4 * t.hidden}, t.dtype);
    r.cell_states = new_tensor(t.input, {d, t.rows, t.hidden}, t.acc_dtype());
    a.gates = r.gates.data_ptr();
    a.cell_states = r.cell_states.data_ptr();
  }
  struct Call {
    const LayerKernels& kernels;
    const ForwardArgs& args;
    Plan plan;
  } call{in.kernels(), a, choose_plan(a.shape, a.row_count, false, pool_threads())};
  run_team(
      call.plan.threads, call.kernels.forward_bytes(a, call.plan),
      [](void* context, Share share, char* workspace) {
        const Call& c = *static_cast<Call*>(context);
        c.kernels.forward(c.args, c.plan, share, workspace);
      },
      &call);
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
  const size_t directions = size_t(d);
  const auto check_output = [&](const Tensor& y, const char* name) {
    if (t.batch_sizes) {
      t.like_input(y, {t.rows, d * t.recurrent()}, name);
    } else {
      t.like_input(y, {t.steps, t.batch, d * t.recurrent()}, name);
    }
  };
  check_output(output, "output");
  t.like_input(gates, {d, t.rows, 4 * t.hidden}, "gates");
  const auto check_cells = [&](const Tensor& cells, const char* name) {
    check_sizes(cells, {d, t.rows, t.hidden}, name);
    STD_TORCH_CHECK(cells.scalar_type() == t.acc_dtype(), "fusedlstm: expected ", name, " of the accumulation dtype");
    t.same_device(cells, name);
  };
  check_cells(cell_states, "cell_states");
  BackwardArgs a{};
  in.fill(a);
  if (d_output) {
    check_output(*d_output, "d_output");
    d_output = unit_stride(*d_output);
    a.d_output = in.rows_of(*d_output);
  }
  for (auto [grad, size, name] : {std::tuple{&d_h_n, t.recurrent(), "d_h_n"}, {&d_c_n, t.hidden, "d_c_n"}})
    if (*grad) {
      t.like_input(**grad, {d, t.batch, size}, name);
      *grad = unit_stride(**grad);
    }
  a.d_h_n = LayerInputs::state(d_h_n);
  a.d_c_n = LayerInputs::state(d_c_n);
  output = dense(output);
  gates = dense(gates);
  cell_states = dense(cell_states);
  a.output = output.data_ptr();
  a.gates = gates.data_ptr();
  a.cell_states = cell_states.data_ptr();
  if (d_cell_states) {
    check_cells(*d_cell_states, "d_cell_states");
    d_cell_states = dense(*d_cell_states);
    a.d_cell_states = d_cell_states->data_ptr();
  }

  const auto result = [&](bool needed, std::initializer_list<int64_t> sizes, void*& data) {
    Tensor y = needed ? new_tensor(t.input, sizes, t.dtype) : new_tensor(t.input, {0}, t.dtype);
    data = needed ? y.data_ptr() : nullptr;
    return y;
  };
  void* unused[2] = {};
  Tensor d_input = t.batch_sizes ? result(needs[kInput], {t.rows, t.features}, a.d_input)
                                 : result(needs[kInput], {t.steps, t.batch, t.features}, a.d_input);
  Tensor d_h_0 = result(needs[kH0], {d, t.batch, t.recurrent()}, a.d_h_0);
  Tensor d_c_0 = result(needs[kC0], {d, t.batch, t.hidden}, a.d_c_0);
  Tensor d_reset_h = result(needs[kResetH] && t.reset_h, {d, t.batch, t.recurrent()}, a.d_reset_h);
  Tensor d_reset_c = result(needs[kResetC] && t.reset_c, {d, t.batch, t.hidden}, a.d_reset_c);
  Tensors d_weight_ih, d_weight_hh, d_bias_ih, d_bias_hh, d_weight_hr;
  for (size_t i = 0; i < directions; ++i) {
    d_weight_ih.push_back(result(needs[kWeightIh], {4 * t.hidden, t.features}, a.d_weight_ih[i]));
    d_weight_hh.push_back(result(needs[kWeightHh], {4 * t.hidden, t.recurrent()}, a.d_weight_hh[i]));
    if (!t.bias_ih.empty()) d_bias_ih.push_back(result(needs[kBiasIh], {4 * t.hidden}, a.d_bias[i]));
    void*& other = a.d_bias[i] ? unused[i] : a.d_bias[i];
    if (!t.bias_hh.empty()) d_bias_hh.push_back(result(needs[kBiasHh], {4 * t.hidden}, other));
    if (t.proj > 0) d_weight_hr.push_back(result(needs[kWeightHr], {t.proj, t.hidden}, a.d_weight_hr[i]));
  }

  struct Call {
    const LayerKernels& kernels;
    const BackwardArgs& args;
    Plan plan;
  } call{in.kernels(), a, choose_plan(a.shape, a.row_count, true, pool_threads())};
  run_team(
      call.plan.threads, call.kernels.backward_bytes(a, call.plan),
      [](void* context, Share share, char* workspace) {
        const Call& c = *static_cast<Call*>(context);
        c.kernels.backward(c.args, c.plan, share, workspace);
      },
      &call);

  // The two biases enter as a sum: their gradients are equal, but must not share memory.
  for (size_t i = 0; i < directions; ++i)
    if (unused[i]) std::memcpy(unused[i], a.d_bias[i], size_t(4 * t.hidden) * t.input.element_size());
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
