// int8 weights of a layer as its operator is given them, checked.
#pragma once

#include "call/checked_layer.h"
#include "cells/all.h"
#include "kernel_table.h"

namespace fusedlstm::cpu {

struct CheckedQuantized {
  WeightSizes sizes{};
  QuantizedWeights weights[2]{};  // memory of the tensors
  bool is_reduced = true;         // as the weights say of themselves: none is beyond -64 .. 64

  // Throws where these are not the weights of a layer of this cell that takes so many features.
  CheckedQuantized(const OwnedTensors& given, const NamedCell& cell, int64_t features);
};

}  // namespace fusedlstm::cpu
