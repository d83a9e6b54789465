// The table of an instruction set: included by its kernels_<isa>.cpp only.
#pragma once

#include "backward.h"
#include "cpu/kernel_table.h"
#include "forward.h"

namespace fusedlstm::cpu {

template <class K>
constexpr LayerKernels layer_kernels() {
  return {
      [](const ForwardArgs& args, const Plan& plan) { return Forward<K>(args, plan).workspace_bytes(); },
      [](const ForwardArgs& args, const Plan& plan, Share& share, char* workspace) {
        Forward<K>(args, plan).run(share, workspace);
      },
      [](const BackwardArgs& args, const Plan& plan) { return Backward<K>(args, plan).workspace_bytes(); },
      [](const BackwardArgs& args, const Plan& plan, Share& share, char* workspace) {
        Backward<K>(args, plan).run(share, workspace);
      },
  };
}

// Every dtype, multiplied in the precision that it accumulates in.
template <class Isa>
constexpr Kernels kernels(const char* name) {
  return {name,
          {layer_kernels<Kit<Isa, Full<float>, FullProduct<float>>>(),
           layer_kernels<Kit<Isa, Full<double>, FullProduct<double>>>(),
           layer_kernels<Kit<Isa, BFloat16Storage, FullProduct<float>>>(),
           layer_kernels<Kit<Isa, Float16Storage, FullProduct<float>>>()}};
}

}  // namespace fusedlstm::cpu
