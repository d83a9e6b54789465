#include "layer.h"

#include "tensor_ops.h"

namespace fusedlstm::gpu {

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

Layer::Layer(LayerTensors tensors, bool allow_tf32) : t(std::move(tensors)), allow_tf32(allow_tf32) {
  STD_TORCH_CHECK(
      is_int(t.steps) && is_int(t.batch) && is_int(4 * t.hidden) && is_int(t.members * t.directions * t.rows),
      "fusedlstm: expected steps, batch, 4 * hidden_size and directions * steps * batch below 2^31");
  for (Tensor* state : {&t.h_0, &t.c_0}) *state = dense(*state);
  for (Tensors* list : {&t.weight_hh, &t.bias_ih, &t.bias_hh})
    for (Tensor& tensor : *list) tensor = dense(tensor);
  for (OptionalTensor* state : {&t.reset, &t.reset_h, &t.reset_c})
    if (*state) *state = dense(**state);
  rows = {static_cast<int>(t.steps),
          static_cast<int>(t.batch),
          static_cast<int>(t.rows),
          static_cast<int>(t.hidden),
          static_cast<int>(t.recurrent()),
          static_cast<int>(t.directions),
          static_cast<int>(t.members),
          nullptr,
          nullptr,
          nullptr,
          nullptr,
          nullptr,
          t.h_0.data_ptr(),
          t.c_0.data_ptr()};
  if (t.batch_sizes) tabulate_rows();
  if (t.lengths) rows.lengths = t.lengths->const_data_ptr<int64_t>();
  if (t.reset) rows.reset = t.reset->const_data_ptr<bool>();
  if (t.reset_h) rows.reset_h = t.reset_h->data_ptr();
  if (t.reset_c) rows.reset_c = t.reset_c->data_ptr();
}

void Layer::tabulate_rows() {
  std::vector<int64_t> lengths(static_cast<size_t>(t.batch));
  int64_t row = 0;
  for (int64_t step = 0; step < t.steps; ++step) {
    offsets.push_back(row);
    row += rows_at(step);
    for (int64_t b = 0; b < rows_at(step); ++b) ++lengths[static_cast<size_t>(b)];
  }
  row_table = new_tensor(t.input, {t.steps + t.batch}, ScalarType::Long);
  auto* table = static_cast<int64_t*>(row_table.data_ptr());
  const cudaStream_t stream = current_stream(t.input);
  check(launch_store_values(offsets.data(), t.steps, table, stream), "row offsets");
  check(launch_store_values(lengths.data(), t.batch, table + t.steps, stream), "lengths");
  rows.row_offsets = row_table.const_data_ptr<int64_t>();
  rows.lengths = rows.row_offsets + t.steps;
}

Tensor Layer::rows_of_step(const Tensor& all, int64_t step) const {
  Tensor view = all;
  return torch::stable::narrow(view, 0, first_row(step), rows_at(step));
}

Tensor member_of(const LayerTensors& t, const Tensor& tensor, int64_t index) {
  const bool is_all = t.lead == 0 || !tensor.defined() || tensor.dim() == 1;
  return is_all ? tensor : torch::stable::select(tensor, 0, index);
}

Problem problem_of(const LayerTensors& t, bool allow_tf32, Pass pass) {
  return {t.steps,           t.batch,    t.hidden, t.proj, static_cast<int>(t.directions), static_cast<int>(t.members),
          dtype_of(t.dtype), allow_tf32, pass};
}

Tensor Layer::new_rows(const Sizes& sizes, ScalarType dtype) const {
  return has_idle_rows() ? zeros(t.input, sizes, dtype) : new_tensor(t.input, sizes, dtype);
}

Tensor Layer::exchange(const Plan& plan) const {
  return new_tensor(t.input, {exchange_bytes(plan, rows) / 4}, ScalarType::Int);
}

Tensor Layer::resident_weight(size_t d, bool is_transposed) const {
  const int64_t H = t.hidden, pitch = weight_pitch(dtype_of(t.dtype), H);
  // A parameter may be a view into a larger buffer, at any address.
  const bool is_aligned = reinterpret_cast<uintptr_t>(t.weight_hh[d].data_ptr()) % 16 == 0;
  if (!is_transposed && pitch == H && is_aligned) return t.weight_hh[d];
  const Sizes square = t.each({4, H, H});
  Tensor blocks = torch::stable::view(t.weight_hh[d], {square.begin(), static_cast<size_t>(square.size())});
  const int64_t i = t.lead, j = i + 1, k = i + 2;  // the three dimensions of a member
  if (is_transposed) blocks = torch::stable::transpose(torch::stable::transpose(blocks, i, k), j, k);
  const Sizes sizes = is_transposed ? t.each({H, 4, pitch}) : t.each({4, H, pitch});
  Tensor padded = pitch == H ? new_tensor(t.input, sizes, t.dtype) : zeros(t.input, sizes, t.dtype);
  Tensor inner = torch::stable::narrow(padded, k, 0, H);
  torch::stable::copy_(inner, blocks);
  return padded;
}

Tensor first_rows(const Tensor& all, int64_t count) {
  if (all.size(0) == count) return all;
  Tensor view = all;
  return torch::stable::narrow(view, 0, 0, count);
}

}  // namespace fusedlstm::gpu
