// The tables of kernels: for each instruction set those of each dtype that it has instructions for which the next
// narrower set has not.
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

// Of a layer with int8 weights; workspace as above.
struct QuantizedLayerKernels {
  int64_t (*forward_bytes)(const QuantizedArgs&, const Plan&);
  void (*forward)(const QuantizedArgs&, const Plan&, Share&, char* workspace);
};

// By CellKind.
struct QuantizedKernels {
  QuantizedLayerKernels cell[kCellKinds];
};
struct DtypeKernels {
  LayerKernels cell[kCellKinds];
};

// Each defined in cpu/instances/<dtype>_<isa>.cpp; the chooser (isa.h) puts them together.
extern const DtypeKernels kFloat32Baseline, kFloat64Baseline, kBFloat16Baseline, kFloat16Baseline;
extern const DtypeKernels kFloat32Neon, kFloat64Neon, kBFloat16Neon, kFloat16Neon;
extern const DtypeKernels kFloat32Avx2, kFloat64Avx2, kBFloat16Avx2, kFloat16Avx2;
extern const DtypeKernels kFloat32Avx512, kFloat64Avx512, kBFloat16Avx512, kFloat16Avx512;
extern const DtypeKernels kBFloat16Avx512Bf16, kBFloat16Avx512Amx;
extern const QuantizedKernels kQuantizedBaseline, kQuantizedAvx2, kQuantizedAvx2Reduced;
extern const QuantizedKernels kQuantizedAvxVnni, kQuantizedAvx512Vnni, kQuantizedAvx512Amx;

}  // namespace fusedlstm::cpu
