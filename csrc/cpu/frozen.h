// Frozen weights as a tensor of bytes, a row for each layer: what they are, and behind it the panels that kernels read.
//
// A program makes them for itself, with <cell>_freeze, and never writes them to a file: they fit one instruction set.
#pragma once

#include <vector>

#include "layer_call.h"

namespace fusedlstm::cpu {

// Of what frozen weights are, in front of them.
struct FrozenHeader {
  char isa[16];
  int32_t cell;  // of kCells
  int32_t dtype;
  int64_t features, hidden, proj, directions;
  int64_t bytes;  // of the layer; a row has as many or more
};

// What a layer's row says of itself, checked, so that kernels can rely on it; `panels` is memory of the tensor.
struct FrozenWeights {
  WeightSizes sizes;
  const LayerKernels& kernels;
  const char* panels;

  // frozen: the row of a layer, or those of all, `row` among them. Throws where it is none of <cell>_freeze, of another
  // cell, or of an instruction set that cannot run here.
  static FrozenWeights of(const Tensor& frozen, int64_t row, int cell);
};

// A new frozen tensor of the weights of these layers, for the instruction set in use.
Tensor freeze(const std::vector<LayerInputs>& layers, int cell);

}  // namespace fusedlstm::cpu
