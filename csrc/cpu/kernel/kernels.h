// The table of an instruction set: included by its kernels_<isa>.cpp only.
#pragma once

#include "backward.h"
#include "cells/all.h"
#include "cpu/kernel_table.h"
#include "forward.h"

namespace fusedlstm::cpu {

template <class Cell>
Cell cell_of(const LayerArgs& args) {
  if constexpr (std::is_same_v<Cell, Rnn>)
    return {args.is_relu};
  else
    return {};
}

template <class K, class Cell>
constexpr LayerKernels layer_kernels() {
  return {
      [](const ForwardArgs& args, const Plan& plan) {
        return Forward<K, Cell>(args, cell_of<Cell>(args), plan).workspace_bytes();
      },
      [](const ForwardArgs& args, const Plan& plan, Share& share, char* workspace) {
        Forward<K, Cell>(args, cell_of<Cell>(args), plan).run(share, workspace);
      },
      [](const BackwardArgs& args, const Plan& plan) {
        return Backward<K, Cell>(args, cell_of<Cell>(args), plan).workspace_bytes();
      },
      [](const BackwardArgs& args, const Plan& plan, Share& share, char* workspace) {
        Backward<K, Cell>(args, cell_of<Cell>(args), plan).run(share, workspace);
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
