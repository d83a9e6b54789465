// The table of an instruction set: included by its kernels_<isa>.cpp only.
#pragma once

#include "backward.h"
#include "cells/all.h"
#include "cpu/kernel_table.h"
#include "forward.h"

namespace fusedlstm::cpu {

template <class K, class Cell>
constexpr LayerKernels layer_kernels() {
  return {
      [](const ForwardArgs& args, const Plan& plan) {
        return Forward<K, Cell>(args, make_cell<Cell>(args.is_relu), plan).workspace_bytes();
      },
      [](const ForwardArgs& args, const Plan& plan, Share& share, char* workspace) {
        Forward<K, Cell>(args, make_cell<Cell>(args.is_relu), plan).run(share, workspace);
      },
      [](const BackwardArgs& args, const Plan& plan) {
        return Backward<K, Cell>(args, make_cell<Cell>(args.is_relu), plan).workspace_bytes();
      },
      [](const BackwardArgs& args, const Plan& plan, Share& share, char* workspace) {
        Backward<K, Cell>(args, make_cell<Cell>(args.is_relu), plan).run(share, workspace);
      },
  };
}

// Of one dtype, every cell.
template <class K>
constexpr DtypeKernels dtype_kernels() {
  return {layer_kernels<K, Lstm>(), layer_kernels<K, Gru>(), layer_kernels<K, Rnn>()};
}

// Every dtype, multiplied in the precision that it accumulates in.
template <class Isa>
constexpr Kernels kernels(const char* name) {
  return {name,
          {dtype_kernels<Kit<Isa, Full<float>, FullProduct<float>>>(),
           dtype_kernels<Kit<Isa, Full<double>, FullProduct<double>>>(),
           dtype_kernels<Kit<Isa, BFloat16Storage, FullProduct<float>>>(),
           dtype_kernels<Kit<Isa, Float16Storage, FullProduct<float>>>()}};
}

}  // namespace fusedlstm::cpu
