// The kernels of one dtype on one instruction set: included by the files of cpu/instances only.
#pragma once

#include "backward.h"
#include "cells/all.h"
#include "cpu/kernel_table.h"
#include "forward.h"
#include "multiplying.h"
#include "second_order.h"

namespace fusedlstm::cpu {

// Gradients of second order of 16-bit layers are computed in float32.
template <class K, class Cell>
constexpr auto second_order_kernel() {
  void (*kernel)(const StepsArgs&, Range) = nullptr;
  if constexpr (std::is_same_v<typename K::storage, typename K::acc>)
    kernel = [](const StepsArgs& args, Range rows) {
      second_order_of_steps<K>(make_cell<Cell>(args.is_relu), args, rows);
    };
  return kernel;
}

template <class K, class Cell>
constexpr LayerKernels layer_kernels() {
  using Panels = LayerPanels<K, Cell::kSizes>;
  return {
      [](const LayerArgs& args) {
        Arena arena{nullptr};
        Panels(args).lay_out(arena);
        return arena.used;
      },
      [](const LayerArgs& args, char* memory) {
        Arena arena{memory};
        Panels panels(args);
        panels.lay_out(arena);
        panels.pack({0, 1, 1, nullptr});
      },
      [](const ForwardArgs& args, const Plan& plan) {
        return Forward<K, Cell>(args, make_cell<Cell>(args.is_relu), plan).workspace_bytes();
      },
      [](const ForwardArgs& args, const Plan& plan, Share& share, char* workspace) {
        [[maybe_unused]] const Multiplying<typename K::Isa> scope;
        Forward<K, Cell>(args, make_cell<Cell>(args.is_relu), plan).run(share, workspace);
      },
      [](const BackwardArgs& args, const Plan& plan) {
        return Backward<K, Cell>(args, make_cell<Cell>(args.is_relu), plan).workspace_bytes();
      },
      [](const BackwardArgs& args, const Plan& plan, Share& share, char* workspace) {
        [[maybe_unused]] const Multiplying<typename K::Isa> scope;
        Backward<K, Cell>(args, make_cell<Cell>(args.is_relu), plan).run(share, workspace);
      },
      second_order_kernel<K, Cell>(),
  };
}

// Of one dtype, every cell.
template <class K>
constexpr DtypeKernels dtype_kernels() {
  return {layer_kernels<K, Lstm>(), layer_kernels<K, Gru>(), layer_kernels<K, Rnn>()};
}

// The dtypes, multiplied in the precision that they accumulate in.
template <class Isa>
using Float32Kit = Kit<Isa, Full<float>, FullProduct<float>>;
template <class Isa>
using Float64Kit = Kit<Isa, Full<double>, FullProduct<double>>;
template <class Isa>
using BFloat16Kit = Kit<Isa, BFloat16Storage, FullProduct<float>>;
template <class Isa>
using Float16Kit = Kit<Isa, Float16Storage, FullProduct<float>>;

}  // namespace fusedlstm::cpu
