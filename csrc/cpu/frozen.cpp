#include "frozen.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <string>

#include "call/views.h"
#include "cells/all.h"
#include "memory.h"

namespace fusedlstm::cpu {
namespace {

constexpr int64_t kHeaderBytes = 64;  // keeps the panels aligned
static_assert(sizeof(FrozenHeader) <= kHeaderBytes);

bool is_sound(const FrozenHeader& header) {
  if (header.cell < 0 || header.cell >= int(std::size(kCells)) || header.dtype < 0 || header.dtype >= kDtypes)
    return false;
  if (header.directions < 1 || header.directions > 2 || header.hidden < 1 || header.hidden > header.bytes) return false;
  // A weight has no more elements than there are bytes: no product overflows.
  const int64_t most = header.bytes / header.hidden;
  const bool may_project = kCells[header.cell].sizes.projects;
  return header.features >= 0 && header.features <= most && header.proj >= 0 &&
         (header.proj > 0 ? may_project && header.proj <= most : header.hidden <= most);
}

// What kernels must be told of a layer to lay its panels out.
LayerArgs layer_of(const FrozenHeader& header) {
  LayerArgs args{};
  args.shape = {0, 0, header.features, header.hidden, header.proj, header.directions, kCells[header.cell].sizes.gates};
  return args;
}

// Rows that each begin where memory of `bytes` should, the most of a layer: a part of a tensor that has more. Pages
// before, between and behind what layers have are never touched.
Tensor new_aligned_rows(const Tensor& like, int64_t rows, int64_t bytes) {
  const int64_t alignment = alignment_of(bytes);
  const int64_t row = rows == 1 ? bytes : (bytes + alignment - 1) / alignment * alignment;
  const Tensor whole = new_tensor(like, {rows * row + alignment}, ScalarType::Byte);
  const auto begin = reinterpret_cast<uintptr_t>(whole.data_ptr());
  return viewed(whole, {rows, row}, {row, 1}, int64_t(-begin & uintptr_t(alignment - 1)));
}

}  // namespace

FrozenWeights FrozenWeights::of(const Tensor& frozen, int64_t row, int cell) {
  FrozenHeader header{};
  const int64_t most = frozen.dim() > 0 ? frozen.size(frozen.dim() - 1) : 0;
  const bool is_long_enough =
      frozen.scalar_type() == ScalarType::Byte && frozen.is_cpu() && frozen.is_contiguous() && most >= kHeaderBytes;
  check_memory(frozen, "frozen weights");
  const char* begin = is_long_enough ? static_cast<const char*>(frozen.data_ptr()) + row * most : nullptr;
  const bool is_aligned = reinterpret_cast<uintptr_t>(begin) % kHeaderBytes == 0;
  if (begin) std::memcpy(&header, begin, sizeof header);
  STD_TORCH_CHECK(begin && is_aligned && header.bytes <= most && is_sound(header), "fusedlstm: expected a tensor of ",
                  kCells[cell].name, "_freeze, got another one");
  STD_TORCH_CHECK(header.cell == cell, "fusedlstm: expected frozen weights of ", kCells[cell].name, ", got those of ",
                  kCells[header.cell].name);
  header.isa[sizeof header.isa - 1] = 0;
  const LayerKernels& kernels = kernels_of(header.isa, kCells[cell].kind, Dtype(header.dtype));
  const int64_t expected = kHeaderBytes + kernels.frozen_bytes(layer_of(header));
  STD_TORCH_CHECK(header.bytes == expected, "fusedlstm: expected ", expected, " bytes of frozen weights, got ",
                  header.bytes);
  return {{header.directions, header.features, header.hidden, header.proj, scalar_type_of(Dtype(header.dtype))},
          kernels,
          begin + kHeaderBytes};
}

Tensor freeze(const std::vector<LayerInputs>& layers, int cell) {
  const std::string isa = active_isa();
  const Dtype dtype = dtype_of(layers[0].t.dtype);
  const LayerKernels& kernels = kernels_of(isa, kCells[cell].kind, dtype);
  const auto bytes_of = [&](const LayerInputs& layer) {
    return kHeaderBytes + kernels.frozen_bytes(layer.arguments<LayerArgs>(0));
  };
  int64_t most = 0;
  for (const LayerInputs& layer : layers) most = std::max(most, bytes_of(layer));
  Tensor frozen = new_aligned_rows(layers[0].t.weight_ih[0], int64_t(layers.size()), most);
  auto* row = static_cast<char*>(frozen.data_ptr());
  for (const LayerInputs& layer : layers) {
    const CheckedLayer& t = layer.t;
    const int64_t bytes = bytes_of(layer);
    ask_for_huge_pages(row, bytes);  // which steps of few rows read from end to end, each time
    FrozenHeader header{{}, cell, int32_t(dtype), t.features, t.hidden, t.proj, t.directions, bytes};
    isa.copy(header.isa, sizeof header.isa - 1);
    std::memset(row, 0, kHeaderBytes);
    std::memcpy(row, &header, sizeof header);
    kernels.freeze(layer.arguments<LayerArgs>(0), row + kHeaderBytes);
    row += frozen.size(1);
  }
  return frozen;
}

}  // namespace fusedlstm::cpu
