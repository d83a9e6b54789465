#include "prepared_layer.h"

#include <stdexcept>

namespace fusedlstm::cuda {

PreparedLayer::PreparedLayer(Host& host, const Layer& given) : host(host), layer(given) {
  if (!is_int(layer.steps) || !is_int(layer.batch) || !is_int(layer.cell.sizes.gates * layer.hidden) ||
      !is_int(layer.members * layer.directions * layer.rows))
    throw std::runtime_error(
        "fusedlstm: expected steps, batch, rows of weight_hh and directions * steps * batch below 2^31");
  const auto straighten = [&](const char* name, View& view) {
    if (!view.is_contiguous()) view = contiguous(name, view);
  };
  for (int i = 0; i < layer.cell.sizes.states; ++i) {
    straighten("initial", layer.initial[i]);
    straighten("reset_state", layer.reset_state[i]);
  }
  for (int d = 0; d < layer.directions; ++d) {
    straighten("weight_hh", layer.weight_hh[d]);
    straighten("bias_ih", layer.bias_ih[d]);
    straighten("bias_hh", layer.bias_hh[d]);
  }
  rows = {.T = static_cast<int>(layer.steps),
          .B = static_cast<int>(layer.batch),
          .N = static_cast<int>(layer.rows),
          .H = static_cast<int>(layer.hidden),
          .R = static_cast<int>(layer.recurrent()),
          .D = static_cast<int>(layer.directions),
          .M = static_cast<int>(layer.members),
          .begin = 0,
          .end = static_cast<int>(layer.steps),
          .row_before = 0,
          .lengths = layer.lengths,
          .row_offsets = nullptr,
          .reset = layer.reset,
          .reset_state = {},
          .initial = {}};
  for (int i = 0; i < kMaxStates; ++i) {
    rows.reset_state[i] = layer.reset_state[i].data;
    rows.initial[i] = layer.initial[i].data;
  }
  if (layer.batch_sizes) tabulate_rows();
}

View PreparedLayer::workspace(const char* name, Dtype dtype, const Sizes& sizes) {
  return buffers_.emplace_back(host, name, dtype, sizes);
}

View PreparedLayer::rows_workspace(const char* name, Dtype dtype, const Sizes& sizes) {
  const View memory = workspace(name, dtype, sizes);
  if (layer.has_idle_rows()) host.zero(memory);
  return memory;
}

View PreparedLayer::contiguous(const char* name, const View& view) {
  return view.is_contiguous() ? view : cuda::contiguous(host, name, view, buffers_.emplace_back());
}

void PreparedLayer::tabulate_rows() {
  std::vector<int64_t> lengths(static_cast<size_t>(layer.batch));
  int64_t row = 0;
  for (int64_t step = 0; step < layer.steps; ++step) {
    offsets_.push_back(row);
    row += layer.rows_at(step);
    for (int64_t b = 0; b < layer.rows_at(step); ++b) ++lengths[static_cast<size_t>(b)];
  }
  offsets_.push_back(row);
  // int64, for which there is no Dtype: eight bytes each.
  auto* table = static_cast<int64_t*>(workspace("row table", Dtype::kFloat64, {layer.steps + layer.batch}).data);
  check(launch_store_values(offsets_.data(), layer.steps, table, host.stream), "row offsets");
  check(launch_store_values(lengths.data(), layer.batch, table + layer.steps, host.stream), "lengths");
  rows.row_offsets = table;
  rows.lengths = table + layer.steps;
}

View PreparedLayer::resident_weight(int d, bool is_transposed, Buffer& memory) const {
  const int64_t G = layer.cell.sizes.gates, H = layer.hidden, pitch = weight_pitch(layer.dtype, H);
  View weight = layer.weight_hh[d];
  Buffer effective;
  if (layer.proj > 0) {
    effective = Buffer(host, "effective weight", layer.dtype, {G * H, H});
    multiply(effective, weight, layer.weight_hr[d]);
    weight = effective;
  }
  // A parameter may be a part of a larger buffer, at any address.
  const bool is_aligned = reinterpret_cast<uintptr_t>(weight.data) % 16 == 0;
  if (!is_transposed && pitch == H && is_aligned) {
    memory = std::move(effective);
    return weight;
  }
  View blocks = weight.as(layer.each({G, H, H}));
  const int i = layer.is_ensemble ? 1 : 0;  // the first dimension of a member
  if (is_transposed) blocks = blocks.transposed(i, i + 2).transposed(i + 1, i + 2);
  memory = Buffer(host, "weight_hh", layer.dtype, layer.each(is_transposed ? Sizes{H, G, pitch} : Sizes{G, H, pitch}));
  if (pitch != H) host.zero(memory);
  host.copy(memory.narrow(i + 2, 0, H), blocks);
  return memory;
}

}  // namespace fusedlstm::cuda
