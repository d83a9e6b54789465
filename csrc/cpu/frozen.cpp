#include "frozen.h"

#include <cstring>
#include <iterator>

#include "cells/all.h"

namespace fusedlstm::cpu {
namespace {

constexpr int64_t kHeaderBytes = 64;  // keeps the panels aligned
static_assert(sizeof(FrozenHeader) <= kHeaderBytes);

}  // namespace

FrozenWeights FrozenWeights::of(const Tensor& frozen, int cell) {
  FrozenHeader header{};
  const bool is_long_enough = frozen.scalar_type() == ScalarType::Byte && frozen.is_cpu() && frozen.is_contiguous() &&
                              frozen.numel() >= kHeaderBytes;
  if (is_long_enough) std::memcpy(&header, frozen.const_data_ptr<uint8_t>(), sizeof header);
  STD_TORCH_CHECK(is_long_enough && header.bytes == frozen.numel() && header.cell >= 0 &&
                      header.cell < int(std::size(kCells)) && header.dtype >= 0 && header.dtype < kDtypes,
                  "fusedlstm: expected a tensor of ", kCells[cell].name, "_freeze, got another one");
  STD_TORCH_CHECK(header.cell == cell, "fusedlstm: expected frozen weights of ", kCells[cell].name, ", got those of ",
                  kCells[header.cell].name);
  header.isa[sizeof header.isa - 1] = 0;
  return {{header.directions, header.features, header.hidden, header.proj, scalar_type_of(Dtype(header.dtype))},
          kernels_of(header.isa, kCells[cell].kind, Dtype(header.dtype)),
          reinterpret_cast<const char*>(frozen.const_data_ptr<uint8_t>()) + kHeaderBytes};
}

Tensor freeze(const CheckedLayer& layer, const LayerArgs& args, int cell, Dtype dtype) {
  const std::string isa = active_isa();
  const LayerKernels& kernels = kernels_of(isa, kCells[cell].kind, dtype);
  const int64_t bytes = kHeaderBytes + kernels.frozen_bytes(args);
  Tensor frozen = new_tensor(layer.weight_ih[0], {bytes}, ScalarType::Byte);
  auto* memory = static_cast<char*>(frozen.data_ptr());
  FrozenHeader header{{}, cell, int32_t(dtype), layer.features, layer.hidden, layer.proj, layer.directions, bytes};
  isa.copy(header.isa, sizeof header.isa - 1);
  std::memset(memory, 0, kHeaderBytes);
  std::memcpy(memory, &header, sizeof header);
  kernels.freeze(args, memory + kHeaderBytes);
  return frozen;
}

}  // namespace fusedlstm::cpu
