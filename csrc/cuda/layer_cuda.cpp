// The layer operators on CUDA: tensors to argument structs, the large matrix products, a plan, and the launches.
//
// The input projection is one product per direction before the recurrence; the gradients of input and weights are
// products after it, from d_gates of all steps. In between runs one resident kernel, or STREAM. Everything is on the
// current stream of the input's device; nothing waits for the device.
#include <torch/csrc/stable/accelerator.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <set>

#include "device_query.h"
#include "launch.h"
#include "plan.h"
#include "tensor_ops.h"

namespace fusedlstm::gpu {
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

// ---- which kernel ---------------------------------------------------------------------------------------------------

const Device& device_record(int ordinal) {
  static std::mutex mutex;
  static std::map<int, Device> known;
  const std::lock_guard lock(mutex);
  const auto found = known.find(ordinal);
  if (found != known.end()) return found->second;
  Device device{};
  check(query_device(ordinal, device), "device properties");
  return known.emplace(ordinal, device).first->second;
}

// Transports that a device has refused to launch: by MPS, MIG, an old driver, or a build without its architecture.
class Refusals {
 public:
  bool contains(int ordinal, Transport transport) {
    const std::lock_guard lock(mutex_);
    return refused_.count({ordinal, transport}) > 0;
  }

  void add(int ordinal, Transport transport, cudaError_t error) {
    const std::lock_guard lock(mutex_);
    if (!refused_.insert({ordinal, transport}).second) return;
    const std::string message = "fusedlstm: device " + std::to_string(ordinal) + " cannot launch the " +
                                transport_name(transport) + " kernels (" + cudaGetErrorString(error) +
                                "); it runs the layer step by step from now on";
    aoti_torch_warn(__func__, __FILE__, __LINE__, message.c_str());
  }

 private:
  std::mutex mutex_;
  std::set<std::pair<int, Transport>> refused_;
};
Refusals refusals;

struct Choice {
  Plan plan;
  bool forced;
};

Choice choose(const Problem& problem, int ordinal) {
  const char* request = std::getenv("FUSEDLSTM_PLAN");
  const bool forced = request && *request;
  try {
    Plan plan = make_plan(problem, device_record(ordinal), forced ? request : "");
    if (!forced && refusals.contains(ordinal, plan.shape.transport))
      plan = make_plan(problem, device_record(ordinal), "stream");
    return {plan, forced};
  } catch (const std::invalid_argument& error) {
    STD_TORCH_CHECK(false, error.what());
  }
}

// Launches a resident kernel; false if the device refused and the caller shall run STREAM.
template <class Launch>
bool launch_resident(const Choice& choice, int ordinal, Launch launch) {
  const cudaError_t error = launch(choice.plan);
  if (error == cudaSuccess) return true;
  if (choice.forced) check(error, to_string(choice.plan).c_str());
  refusals.add(ordinal, choice.plan.shape.transport, error);
  return false;
}

// ---- arguments that forward and backward share --------------------------------------------------------------------

struct Layer {
  LayerTensors t;
  bool allow_tf32;
  Tensor row_table;  // packed: row offsets [T] and lengths [B], on the device
  RowStates rows{};

  Layer(LayerTensors tensors, bool allow_tf32) : t(std::move(tensors)), allow_tf32(allow_tf32) {
    t.prepare();
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
    STD_TORCH_CHECK(t.steps <= kMost && t.batch <= kMost && 4 * t.hidden <= kMost,
                    "fusedlstm: expected steps, batch and 4 * hidden_size below 2^31");
    for (Tensor* state : {&t.h_0, &t.c_0}) *state = dense(*state);
    for (OptionalTensor* state : {&t.reset, &t.reset_h, &t.reset_c})
      if (*state) *state = dense(**state);
    rows = {t.steps,         t.batch, t.rows,  t.hidden, t.recurrent(), static_cast<int>(t.directions),
            nullptr,         nullptr, nullptr, nullptr,  nullptr,       t.h_0.data_ptr(),
            t.c_0.data_ptr()};
    if (t.batch_sizes) tabulate_rows();
    if (t.lengths) rows.lengths = t.lengths->const_data_ptr<int64_t>();
    if (t.reset) rows.reset = t.reset->const_data_ptr<bool>();
    if (t.reset_h) rows.reset_h = t.reset_h->data_ptr();
    if (t.reset_c) rows.reset_c = t.reset_c->data_ptr();
  }

  int ordinal() const { return t.input.get_device(); }
  bool empty() const { return t.rows == 0; }
  // Dense rows beyond a length are not run: what the kernels do not write there must be zero.
  bool has_idle_rows() const { return t.lengths.has_value(); }
  int64_t rows_at(int64_t step) const {
    return t.batch_sizes ? t.batch_sizes->const_data_ptr<int64_t>()[step] : t.batch;
  }
  int64_t first_row(int64_t step) const { return t.batch_sizes ? offsets[static_cast<size_t>(step)] : step * t.batch; }
  int64_t time(size_t d, int64_t position) const { return d == 0 ? position : t.steps - 1 - position; }

  Choice plan(Pass pass) const {
    return choose(
        {t.steps, t.batch, t.hidden, t.proj, static_cast<int>(t.directions), dtype_of(t.dtype), allow_tf32, pass},
        ordinal());
  }

  Tensor like_rows(int64_t columns) const {
    return t.batch_sizes ? new_tensor(t.input, {t.rows, columns}, t.dtype)
                         : new_tensor(t.input, {t.steps, t.batch, columns}, t.dtype);
  }
  Tensor new_rows(std::initializer_list<int64_t> sizes, ScalarType dtype) const {
    return has_idle_rows() ? zeros(t.input, sizes, dtype) : new_tensor(t.input, sizes, dtype);
  }

  // Workspace of GRID: an int32 tensor, so that it comes from torch's caching allocator.
  Tensor exchange(const Plan& plan) const {
    return new_tensor(t.input, {exchange_bytes(plan, rows) / 4}, ScalarType::Int);
  }

  // W_hh as resident kernels read it: [4, H, pitch], or transposed [H, 4, pitch], rows padded with zeros to 16 bytes.
  Tensor resident_weight(size_t d, bool is_transposed) const {
    const int64_t H = t.hidden, pitch = weight_pitch(dtype_of(t.dtype), H);
    // A parameter may be a view into a larger buffer, at any address.
    const bool is_aligned = reinterpret_cast<uintptr_t>(t.weight_hh[d].data_ptr()) % 16 == 0;
    if (!is_transposed && pitch == H && is_aligned) return t.weight_hh[d];
    Tensor blocks = torch::stable::view(t.weight_hh[d], {4, H, H});
    if (is_transposed) blocks = torch::stable::transpose(torch::stable::transpose(blocks, 0, 2), 1, 2);
    const std::array<int64_t, 2> outer = is_transposed ? std::array{H, int64_t{4}} : std::array{int64_t{4}, H};
    Tensor padded = pitch == H ? new_tensor(t.input, {outer[0], outer[1], pitch}, t.dtype)
                               : zeros(t.input, {outer[0], outer[1], pitch}, t.dtype);
    Tensor inner = torch::stable::narrow(padded, 2, 0, H);
    torch::stable::copy_(inner, blocks);
    return padded;
  }

 private:
  std::vector<int64_t> offsets;

  void tabulate_rows() {
    Tensor host = new_tensor(*t.batch_sizes, {t.steps + t.batch}, ScalarType::Long);
    auto* table = static_cast<int64_t*>(host.data_ptr());
    int64_t row = 0;
    for (int64_t b = 0; b < t.batch; ++b) table[t.steps + b] = 0;
    for (int64_t step = 0; step < t.steps; ++step) {
      offsets.push_back(row);
      table[step] = row;
      row += rows_at(step);
      for (int64_t b = 0; b < rows_at(step); ++b) ++table[t.steps + b];
    }
    row_table = new_tensor(t.input, {t.steps + t.batch}, ScalarType::Long);
    torch::stable::copy_(row_table, host, /*non_blocking=*/true);
    rows.row_offsets = row_table.const_data_ptr<int64_t>();
    rows.lengths = rows.row_offsets + t.steps;
  }
};

// Rows of one step of a [N, columns] tensor.
Tensor rows_of_step(const Layer& layer, const Tensor& all, int64_t step) {
  Tensor view = all;
  return torch::stable::narrow(view, 0, layer.first_row(step), layer.rows_at(step));
}

Tensor first_rows(const Tensor& all, int64_t count) {
  if (all.size(0) == count) return all;
  Tensor view = all;
  return torch::stable::narrow(view, 0, 0, count);
}

// ---- forward --------------------------------------------------------------------------------------------------------

struct ForwardResults {
  Tensor output, h_n, c_n, gates, cell_states;
};

// W_ih x of all steps for one direction, and where step t of batch row b stands in it. A transposed input (batch
// first) is multiplied as it lies; other strides are copied.
Tensor project_input(const Layer& layer, size_t d, ForwardArgs& a) {
  const LayerTensors& t = layer.t;
  const int64_t width = 4 * t.hidden;
  Tensor x = t.input;
  a.pre_gates_stride_t = t.batch * width;
  a.pre_gates_stride_b = width;
  if (!t.batch_sizes && !x.is_contiguous()) {
    Tensor batch_first = torch::stable::transpose(x, 0, 1);
    if (batch_first.is_contiguous()) {
      x = batch_first;
      a.pre_gates_stride_t = width;
      a.pre_gates_stride_b = t.steps * width;
    }
  }
  x = torch::stable::view(dense(x), {t.rows, t.features});
  Tensor pre_gates = new_tensor(t.input, {t.rows, width}, t.acc_dtype());
  multiply(pre_gates, x, transposed(t.weight_ih[d]));
  a.pre_gates[d] = pre_gates.data_ptr();
  return pre_gates;
}

void stream_forward(const Layer& layer, const ForwardArgs& a, size_t d, cudaStream_t stream) {
  const LayerTensors& t = layer.t;
  const Tensor sums = new_tensor(t.input, {t.batch, 4 * t.hidden}, t.acc_dtype());
  const Tensor h = new_tensor(t.input, {t.batch, t.recurrent()}, t.dtype);
  const Tensor c = new_tensor(t.input, {t.batch, t.hidden}, t.acc_dtype());
  ForwardStep state{static_cast<int>(d), 0, sums.data_ptr(), h.data_ptr(), c.data_ptr(), nullptr};
  Tensor hidden, projected, weight_hr;
  if (t.proj > 0) {
    hidden = new_tensor(t.input, {t.batch, t.hidden}, t.dtype);
    projected = new_tensor(t.input, {t.batch, t.proj}, t.acc_dtype());
    weight_hr = transposed(t.weight_hr[d]);
    state.hidden = hidden.data_ptr();
  }
  const Tensor weight_hh = transposed(t.weight_hh[d]);
  for (state.step = -1; state.step < t.steps; ++state.step) {
    const int64_t count = state.step < 0 ? t.batch : layer.rows_at(layer.time(d, state.step));
    if (state.step >= 0) multiply(first_rows(sums, count), first_rows(h, count), weight_hh);
    check(launch_forward_step(a, state, stream), "forward step");
    if (t.proj == 0) continue;
    if (state.step >= 0) multiply(first_rows(projected, count), first_rows(hidden, count), weight_hr);
    check(launch_forward_projected(a, state, projected.data_ptr(), stream), "projection step");
  }
}

ForwardResults forward(const Layer& layer, bool training) {
  const LayerTensors& t = layer.t;
  const int64_t D = t.directions;
  ForwardResults r;
  r.output = layer.like_rows(D * t.recurrent());
  if (training) {
    r.gates = layer.new_rows({D, t.rows, 4 * t.hidden}, t.dtype);
    r.cell_states = layer.new_rows({D, t.rows, t.hidden}, t.acc_dtype());
  }
  if (layer.empty()) {
    r.h_n = torch::stable::clone(t.h_0);
    r.c_n = torch::stable::clone(t.c_0);
    return r;
  }
  if (layer.has_idle_rows()) torch::stable::zero_(r.output);
  r.h_n = new_tensor(t.input, {D, t.batch, t.recurrent()}, t.dtype);
  r.c_n = new_tensor(t.input, {D, t.batch, t.hidden}, t.dtype);

  ForwardArgs a{};
  a.rows = layer.rows;
  a.dtype = dtype_of(t.dtype);
  a.output = r.output.data_ptr();
  a.h_n = r.h_n.data_ptr();
  a.c_n = r.c_n.data_ptr();
  a.gates = training ? r.gates.data_ptr() : nullptr;
  a.cell_states = training ? r.cell_states.data_ptr() : nullptr;
  Tensors kept;  // until everything is launched: the caching allocator then orders reuse by the stream
  for (size_t d = 0; d < t.weight_ih.size(); ++d) {
    kept.push_back(project_input(layer, d, a));
    a.bias_ih[d] = t.bias_ih.empty() ? nullptr : t.bias_ih[d].data_ptr();
    a.bias_hh[d] = t.bias_hh.empty() ? nullptr : t.bias_hh[d].data_ptr();
  }
  const cudaStream_t stream = current_stream(t.input);
  const Choice choice = layer.plan(Pass::kForward);
  if (choice.plan.shape.transport != Transport::kStream) {
    for (size_t d = 0; d < t.weight_hh.size(); ++d) {
      kept.push_back(layer.resident_weight(d, /*is_transposed=*/false));
      a.weight_hh[d] = kept.back().data_ptr();
    }
    kept.push_back(layer.exchange(choice.plan));
    a.exchange = kept.back().data_ptr();
    if (launch_resident(choice, layer.ordinal(), [&](const Plan& plan) { return launch_forward(plan, a, stream); }))
      return r;
  }
  for (size_t d = 0; d < t.weight_hh.size(); ++d) stream_forward(layer, a, d, stream);
  return r;
}

// ---- backward -------------------------------------------------------------------------------------------------------

// d_projected: [N, P] of this direction, written here; undefined without projection.
void stream_backward(const Layer& layer, const BackwardArgs& a, size_t d, const Tensor& d_gates,
                     const Tensor& d_projected, cudaStream_t stream) {
  const LayerTensors& t = layer.t;
  const Tensor sums = new_tensor(t.input, {t.batch, t.recurrent()}, t.acc_dtype());
  const Tensor d_h = new_tensor(t.input, {t.batch, t.recurrent()}, t.acc_dtype());
  const Tensor d_c = new_tensor(t.input, {t.batch, t.hidden}, t.acc_dtype());
  BackwardStep state{static_cast<int>(d), 0, sums.data_ptr(), d_h.data_ptr(), d_c.data_ptr(), nullptr, nullptr};
  Tensor d_hidden;
  if (t.proj > 0) {
    d_hidden = new_tensor(t.input, {t.batch, t.hidden}, t.acc_dtype());
    state.d_projected = d_projected.data_ptr();
    state.d_hidden = d_hidden.data_ptr();
  }
  for (state.step = 0; state.step <= t.steps; ++state.step) {
    if (state.step > 0) {
      const int64_t done = layer.time(d, t.steps - state.step);
      multiply(first_rows(sums, layer.rows_at(done)), rows_of_step(layer, d_gates, done), t.weight_hh[d]);
    }
    if (t.proj > 0) {
      check(launch_backward_projected(a, state, stream), "projection's backward step");
      if (state.step < t.steps) {
        const int64_t now = layer.time(d, t.steps - 1 - state.step);
        multiply(first_rows(d_hidden, layer.rows_at(now)), rows_of_step(layer, d_projected, now), t.weight_hr[d]);
      }
    }
    check(launch_backward_step(a, state, stream), "backward step");
  }
}

// What the recurrence backward leaves behind, for the products after it.
struct BackwardRecurrence {
  Tensor d_gates;               // [D, N, 4H]
  Tensor d_projected;           // [D, N, P], with a projection
  Tensor d_h_0, d_c_0;          // [D, B, R], [D, B, H]
  Tensor d_reset_h, d_reset_c;  // the same sizes, in the accumulation dtype; undefined without resets
};

struct OutputGradients {
  OptionalTensor output, h_n, c_n, cell_states;
};

BackwardRecurrence run_backward(const Layer& layer, const OutputGradients& d_out, const Tensor& gates,
                                const Tensor& cell_states) {
  const LayerTensors& t = layer.t;
  const int64_t D = t.directions;
  BackwardRecurrence r;
  r.d_gates = layer.new_rows({D, t.rows, 4 * t.hidden}, t.dtype);
  r.d_h_0 = new_tensor(t.input, {D, t.batch, t.recurrent()}, t.dtype);
  r.d_c_0 = new_tensor(t.input, {D, t.batch, t.hidden}, t.dtype);
  BackwardArgs a{};
  a.rows = layer.rows;
  a.dtype = dtype_of(t.dtype);
  a.gates = gates.data_ptr();
  a.cell_states = cell_states.data_ptr();
  if (d_out.output) {
    a.d_output = d_out.output->data_ptr();
    a.d_output_stride_t = t.batch_sizes ? 0 : d_out.output->stride(0);
    a.d_output_stride_b = d_out.output->stride(t.batch_sizes ? 0 : 1);
  }
  a.d_h_n = d_out.h_n ? d_out.h_n->data_ptr() : nullptr;
  a.d_c_n = d_out.c_n ? d_out.c_n->data_ptr() : nullptr;
  a.d_cell_states = d_out.cell_states ? d_out.cell_states->data_ptr() : nullptr;
  a.d_gates = r.d_gates.data_ptr();
  a.d_h_0 = r.d_h_0.data_ptr();
  a.d_c_0 = r.d_c_0.data_ptr();
  if (t.reset) {
    r.d_reset_h = zeros(t.input, {D, t.batch, t.recurrent()}, t.acc_dtype());
    r.d_reset_c = zeros(t.input, {D, t.batch, t.hidden}, t.acc_dtype());
    a.d_reset_h = r.d_reset_h.data_ptr();
    a.d_reset_c = r.d_reset_c.data_ptr();
  }
  const cudaStream_t stream = current_stream(t.input);
  const Choice choice = layer.plan(Pass::kBackward);
  if (choice.plan.shape.transport != Transport::kStream) {
    Tensors kept;
    for (size_t d = 0; d < t.weight_hh.size(); ++d) {
      kept.push_back(layer.resident_weight(d, /*is_transposed=*/true));
      a.weight_hh[d] = kept.back().data_ptr();
    }
    kept.push_back(layer.exchange(choice.plan));
    a.exchange = kept.back().data_ptr();
    if (launch_resident(choice, layer.ordinal(), [&](const Plan& plan) { return launch_backward(plan, a, stream); }))
      return r;
  }
  if (t.proj > 0) r.d_projected = layer.new_rows({D, t.rows, t.proj}, t.dtype);
  for (size_t d = 0; d < t.weight_hh.size(); ++d) {
    const auto i = static_cast<int64_t>(d);
    const Tensor d_projected = t.proj > 0 ? torch::stable::select(r.d_projected, 0, i) : Tensor();
    stream_backward(layer, a, d, torch::stable::select(r.d_gates, 0, i), d_projected, stream);
  }
  return r;
}

#define FUSEDLSTM_LAYER_PARAMETERS                                                                              \
  Tensor input, Tensor h_0, Tensor c_0, Tensors weight_ih, Tensors weight_hh, Tensors bias_ih, Tensors bias_hh, \
      Tensors weight_hr, OptionalTensor batch_sizes, OptionalTensor lengths, OptionalTensor reset,              \
      OptionalTensor reset_h, OptionalTensor reset_c, bool allow_tf32
#define FUSEDLSTM_LAYER_TENSORS \
  {input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, batch_sizes, lengths, reset, reset_h, reset_c}

using DeviceGuard = torch::stable::accelerator::DeviceGuard;

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_layer(FUSEDLSTM_LAYER_PARAMETERS) {
  const DeviceGuard guard(input.get_device_index());
  ForwardResults r = forward(Layer(FUSEDLSTM_LAYER_TENSORS, allow_tf32), true);
  return {r.output, r.h_n, r.c_n, r.gates, r.cell_states};
}

std::tuple<Tensor, Tensor, Tensor> lstm_layer_inference(FUSEDLSTM_LAYER_PARAMETERS) {
  const DeviceGuard guard(input.get_device_index());
  ForwardResults r = forward(Layer(FUSEDLSTM_LAYER_TENSORS, allow_tf32), false);
  return {r.output, r.h_n, r.c_n};
}

// Positions in `needs`, which are those of the results.
enum Need { kInput, kH0, kC0, kWeightIh, kWeightHh, kBiasIh, kBiasHh, kWeightHr, kResetH, kResetC, kNeeds };

struct Gradients {
  Tensor input, h_0, c_0;
  Tensors weight_ih, weight_hh, bias_ih, bias_hh, weight_hr;
  Tensor reset_h, reset_c;
};

// The products after the recurrence: gradients of the input and of everything that all steps share.
void finish_gradients(const Layer& layer, const BackwardRecurrence& r, const Tensor& output, const Tensor& gates,
                      const Tensor& cell_states, const std::vector<bool>& needs, Gradients& grads) {
  const LayerTensors& t = layer.t;
  const int64_t D = t.directions;
  const cudaStream_t stream = current_stream(t.input);
  Tensor x = torch::stable::view(dense(t.input), {t.rows, t.features});
  if (layer.has_idle_rows() && needs[kWeightIh]) {  // zero d_gates times NaN padding would be NaN
    Tensor running = new_tensor(t.input, {t.rows, t.features}, t.dtype);
    check(launch_running_rows(layer.rows, dtype_of(t.dtype), t.features, x.data_ptr(), running.data_ptr(), stream),
          "running rows");
    x = running;
  }
  Tensor previous, hidden;
  if (needs[kWeightHh]) {
    previous = layer.new_rows({D, t.rows, t.recurrent()}, t.dtype);
    check(launch_previous_states(layer.rows, dtype_of(t.dtype), output.data_ptr(), previous.data_ptr(), stream),
          "previous states");
  }
  if (t.proj > 0 && needs[kWeightHr]) {
    hidden = layer.new_rows({D, t.rows, t.hidden}, t.dtype);
    check(launch_hidden_states(layer.rows, dtype_of(t.dtype), gates.data_ptr(), cell_states.data_ptr(),
                               hidden.data_ptr(), stream),
          "hidden states");
  }
  for (size_t d = 0; d < t.weight_ih.size(); ++d) {
    const auto i = static_cast<int64_t>(d);
    const Tensor d_gates = torch::stable::select(r.d_gates, 0, i);
    if (needs[kInput]) {
      const Tensor d_x = torch::stable::view(grads.input, {t.rows, t.features});
      d == 0 ? multiply(d_x, d_gates, t.weight_ih[d]) : multiply_add(d_x, d_gates, t.weight_ih[d]);
    }
    if (needs[kWeightIh]) multiply(grads.weight_ih[d], transposed(d_gates), x);
    if (needs[kWeightHh]) multiply(grads.weight_hh[d], transposed(d_gates), torch::stable::select(previous, 0, i));
    if (t.proj > 0 && needs[kWeightHr])
      multiply(grads.weight_hr[d], transposed(torch::stable::select(r.d_projected, 0, i)),
               torch::stable::select(hidden, 0, i));
    // The two biases enter as a sum: their gradients are equal, but must not share memory.
    Tensor* first = nullptr;
    for (auto [need, list] : {std::pair{kBiasIh, &grads.bias_ih}, {kBiasHh, &grads.bias_hh}}) {
      if (!needs[need] || list->empty()) continue;
      if (first) {
        torch::stable::copy_((*list)[d], *first);
      } else {
        const int64_t rows_dim = 0;
        torch::stable::sum_out((*list)[d], d_gates, {{&rows_dim, 1}});
        first = &(*list)[d];
      }
    }
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensors, Tensors, Tensors, Tensors, Tensors, Tensor, Tensor> lstm_layer_backward(
    OptionalTensor d_output, OptionalTensor d_h_n, OptionalTensor d_c_n, OptionalTensor d_cell_states,
    FUSEDLSTM_LAYER_PARAMETERS, Tensor output, Tensor gates, Tensor cell_states, std::vector<bool> needs) {
  STD_TORCH_CHECK(needs.size() == kNeeds, "fusedlstm: expected ", int(kNeeds), " needs, got ", needs.size());
  const DeviceGuard guard(input.get_device_index());
  const Layer layer(FUSEDLSTM_LAYER_TENSORS, allow_tf32);
  const LayerTensors& t = layer.t;
  const int64_t D = t.directions;
  const auto check_output = [&](const Tensor& y, const char* name) {
    if (t.batch_sizes)
      t.like_input(y, {t.rows, D * t.recurrent()}, name);
    else
      t.like_input(y, {t.steps, t.batch, D * t.recurrent()}, name);
  };
  const auto check_cells = [&](const Tensor& cells, const char* name) {
    check_sizes(cells, {D, t.rows, t.hidden}, name);
    STD_TORCH_CHECK(cells.scalar_type() == t.acc_dtype(), "fusedlstm: expected ", name, " of the accumulation dtype");
    t.same_device(cells, name);
  };
  check_output(output, "output");
  t.like_input(gates, {D, t.rows, 4 * t.hidden}, "gates");
  check_cells(cell_states, "cell_states");
  if (d_output) {
    check_output(*d_output, "d_output");
    d_output = unit_stride(*d_output);
  }
  if (d_h_n) t.like_input(*d_h_n, {D, t.batch, t.recurrent()}, "d_h_n");
  if (d_c_n) t.like_input(*d_c_n, {D, t.batch, t.hidden}, "d_c_n");
  if (d_cell_states) check_cells(*d_cell_states, "d_cell_states");
  for (OptionalTensor* grad : {&d_h_n, &d_c_n, &d_cell_states})
    if (*grad) *grad = dense(**grad);

  // Zeros where there is nothing to run; otherwise every element is written.
  const auto result = [&](bool needed, std::initializer_list<int64_t> sizes) {
    if (!needed) return new_tensor(t.input, {0}, t.dtype);
    return layer.empty() ? zeros(t.input, sizes, t.dtype) : new_tensor(t.input, sizes, t.dtype);
  };
  Gradients grads;
  grads.input = needs[kInput] ? layer.like_rows(t.features) : new_tensor(t.input, {0}, t.dtype);
  for (size_t d = 0; d < t.weight_ih.size(); ++d) {
    grads.weight_ih.push_back(result(needs[kWeightIh], {4 * t.hidden, t.features}));
    grads.weight_hh.push_back(result(needs[kWeightHh], {4 * t.hidden, t.recurrent()}));
    if (!t.bias_ih.empty()) grads.bias_ih.push_back(result(needs[kBiasIh], {4 * t.hidden}));
    if (!t.bias_hh.empty()) grads.bias_hh.push_back(result(needs[kBiasHh], {4 * t.hidden}));
    if (t.proj > 0) grads.weight_hr.push_back(result(needs[kWeightHr], {t.proj, t.hidden}));
  }
  const auto optional_result = [&](bool needed, const Tensor& value) {
    return needed ? torch::stable::to(value, t.dtype) : new_tensor(t.input, {0}, t.dtype);
  };
  if (layer.empty()) {
    const auto pass_on = [&](bool needed, const OptionalTensor& grad, int64_t size) {
      return needed && grad ? torch::stable::clone(*grad) : result(needed, {D, t.batch, size});
    };
    grads.h_0 = pass_on(needs[kH0], d_h_n, t.recurrent());
    grads.c_0 = pass_on(needs[kC0], d_c_n, t.hidden);
    grads.reset_h = result(needs[kResetH] && t.reset_h, {D, t.batch, t.recurrent()});
    grads.reset_c = result(needs[kResetC] && t.reset_c, {D, t.batch, t.hidden});
  } else {
    output = dense(output);
    gates = dense(gates);
    cell_states = dense(cell_states);
    const BackwardRecurrence r = run_backward(layer, {d_output, d_h_n, d_c_n, d_cell_states}, gates, cell_states);
    finish_gradients(layer, r, output, gates, cell_states, needs, grads);
    grads.h_0 = needs[kH0] ? r.d_h_0 : result(false, {});
    grads.c_0 = needs[kC0] ? r.d_c_0 : result(false, {});
    grads.reset_h = optional_result(needs[kResetH] && t.reset && t.reset_h, r.d_reset_h);
    grads.reset_c = optional_result(needs[kResetC] && t.reset && t.reset_c, r.d_reset_c);
  }
  return {grads.input,   grads.h_0,     grads.c_0,       grads.weight_ih, grads.weight_hh,
          grads.bias_ih, grads.bias_hh, grads.weight_hr, grads.reset_h,   grads.reset_c};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fusedlstm, CUDA, m) {
  m.impl("lstm_layer", TORCH_BOX(&lstm_layer));
  m.impl("lstm_layer_inference", TORCH_BOX(&lstm_layer_inference));
  m.impl("lstm_layer_backward", TORCH_BOX(&lstm_layer_backward));
}

}  // namespace fusedlstm::gpu
