// The kernels of int8 layers on one instruction set: included by cpu/instances/quantized_<isa>.cpp only, which are
// compiled without fused multiply-adds (short_math.h).
#pragma once

#include "cells/all.h"
#include "cpu/kernel_table.h"
#include "quantized_forward.h"

namespace fusedlstm::cpu {

template <class K, class Cell>
constexpr QuantizedLayerKernels quantized_layer_kernels() {
  return {
      [](const QuantizedArgs& args, const Plan& plan) {
        return QuantizedForward<K, Cell>(args, make_cell<Cell>(args.is_relu), plan).workspace_bytes();
      },
      [](const QuantizedArgs& args, const Plan& plan, Share& share, char* workspace) {
        QuantizedForward<K, Cell>(args, make_cell<Cell>(args.is_relu), plan).run(share, workspace);
      },
  };
}

template <class Isa>
constexpr QuantizedKernels quantized_kernels() {
  using K = QuantizedKit<Isa>;
  return {quantized_layer_kernels<K, Lstm>(), quantized_layer_kernels<K, Gru>(), quantized_layer_kernels<K, Rnn>()};
}

}  // namespace fusedlstm::cpu
