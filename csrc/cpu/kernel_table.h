// The tables of kernels: one for each instruction set, in it one entry for each dtype; an empty one where the set has
// no instruction that the next narrower one does not have too.
#pragma once

#include "cells/all.h"
#include "cells/steps.h"
#include "division.h"
#include "dtypes.h"

namespace fusedlstm::cpu {

struct LayerKernels {
  // Weights as `forward` reads them, 64-byte aligned; of `args` the sizes and the weights are used.
  int64_t (*frozen_bytes)(const LayerArgs&);
  void (*freeze)(const LayerArgs&, char* memory);
  int64_t (*forward_bytes)(const ForwardArgs&, const Plan&);  // workspace, 64-byte aligned
  void (*forward)(const ForwardArgs&, const Plan&, Share&, char* workspace);
  int64_t (*backward_bytes)(const BackwardArgs&, const Plan&);
  void (*backward)(const BackwardArgs&, const Plan&, Share&, char* workspace);
  void (*second_order)(const StepsArgs&, Range rows);  // null for 16-bit dtypes
};

// By CellKind.
struct DtypeKernels {
  LayerKernels cell[kCellKinds];
};

struct Kernels {
  const char* isa;
  DtypeKernels dtype[kDtypes];
};

// One table per instruction set, each defined in kernels_<isa>.cpp; the chooser (isa.h) picks one.
extern const Kernels kBaselineKernels, kAvx2Kernels, kAvx512Kernels, kAvx512Bf16Kernels;

}  // namespace fusedlstm::cpu
