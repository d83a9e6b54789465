#include "frozen.h"

#include <cstring>
#include <iterator>

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

// Bytes that begin where memory of their number should: a part of a tensor that has more. Pages before and behind them
// are never touched.
Tensor new_aligned_bytes(const Tensor& like, int64_t bytes) {
  const int64_t alignment = alignment_of(bytes);
  const Tensor whole = new_tensor(like, {bytes + alignment}, ScalarType::Byte);
  const auto begin = reinterpret_cast<uintptr_t>(whole.data_ptr());
  return viewed(whole, {bytes}, {1}, int64_t(-begin & uintptr_t(alignment - 1)));
}

}  // namespace

FrozenWeights FrozenWeights::of(const Tensor& frozen, int cell) {
  FrozenHeader header{};
  const bool is_long_enough = frozen.scalar_type() == ScalarType::Byte && frozen.is_cpu() && frozen.is_contiguous() &&
                              frozen.numel() >= kHeaderBytes;
  check_memory(frozen, "frozen weights");
  if (is_long_enough) std::memcpy(&header, frozen.const_data_ptr<uint8_t>(), sizeof header);
  STD_TORCH_CHECK(is_long_enough && header.bytes == frozen.numel() && is_sound(header),
                  "fusedlstm: expected a tensor of ", kCells[cell].name, "_freeze, got another one");
  STD_TORCH_CHECK(header.cell == cell, "fusedlstm: expected frozen weights of ", kCells[cell].name, ", got those of ",
                  kCells[header.cell].name);
  header.isa[sizeof header.isa - 1] = 0;
  const LayerKernels& kernels = kernels_of(header.isa, kCells[cell].kind, Dtype(header.dtype));
  const int64_t expected = kHeaderBytes + kernels.frozen_bytes(layer_of(header));
  STD_TORCH_CHECK(header.bytes == expected, "fusedlstm: expected ", expected, " bytes of frozen weights, got ",
                  header.bytes);
  return {{header.directions, header.features, header.hidden, header.proj, scalar_type_of(Dtype(header.dtype))},
          kernels,
          reinterpret_cast<const char*>(frozen.const_data_ptr<uint8_t>()) + kHeaderBytes};
}

Tensor freeze(const CheckedLayer& layer, const LayerArgs& args, int cell, Dtype dtype) {
  const std::string isa = active_isa();
  const LayerKernels& kernels = kernels_of(isa, kCells[cell].kind, dtype);
  const int64_t bytes = kHeaderBytes + kernels.frozen_bytes(args);
  Tensor frozen = new_aligned_bytes(layer.weight_ih[0], bytes);
  auto* memory = static_cast<char*>(frozen.data_ptr());
  ask_for_huge_pages(memory, bytes);  // which steps of few rows read from end to end, each time
  FrozenHeader header{{}, cell, int32_t(dtype), layer.features, layer.hidden, layer.proj, layer.directions, bytes};
  isa.copy(header.isa, sizeof header.isa - 1);
  std::memset(memory, 0, kHeaderBytes);
  std::memcpy(memory, &header, sizeof header);
  kernels.freeze(args, memory + kHeaderBytes);
  return frozen;
}

}  // namespace fusedlstm::cpu
