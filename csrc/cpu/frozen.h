// Frozen weights as a tensor of bytes: what they are, and behind it the panels that kernels read.
//
// A program makes them for itself, with <cell>_freeze, and never writes them to a file: they fit one instruction set.
#pragma once

#include "call/checked_layer.h"
#include "isa.h"

namespace fusedlstm::cpu {

// Of what frozen weights are, in front of them.
struct FrozenHeader {
  char isa[16];
  int32_t cell;  // of kCells
  int32_t dtype;
  int64_t features, hidden, proj, directions;
  int64_t bytes;  // of the whole tensor
};

// What a frozen tensor says of itself, checked, so that kernels can rely on it; `panels` is memory of the tensor.
struct FrozenWeights {
  WeightSizes sizes;
  const LayerKernels& kernels;
  const char* panels;

  // Throws where the tensor is none of <cell>_freeze, of another cell, or of an instruction set that cannot run here.
  static FrozenWeights of(const Tensor& frozen, int cell);
};

// A new frozen tensor of these weights, for the instruction set in use.
Tensor freeze(const CheckedLayer& layer, const LayerArgs& args, int cell, Dtype dtype);

}  // namespace fusedlstm::cpu
