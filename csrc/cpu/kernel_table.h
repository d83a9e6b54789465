// The tables of kernels: for each instruction set those of each dtype that it has instructions for which the next
// narrower set has not.
#pragma once

#include "cells/all.h"
#include "cells/steps.h"
#include "cells/varied.h"
#include "division.h"
#include "dtypes.h"
#include "varied_args.h"

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

// Of a recurrence with variants; workspace as above.
struct RecurrenceKernels {
  int64_t (*forward_bytes)(const VariedForwardArgs&, const Plan&);
  void (*forward)(const VariedForwardArgs&, const Plan&, Share&, char* workspace);
  int64_t (*backward_bytes)(const VariedBackwardArgs&, const Plan&);
  void (*backward)(const VariedBackwardArgs&, const Plan&, Share&, char* workspace);
};

// By CellKind.
struct QuantizedKernels {
  QuantizedLayerKernels cell[kCellKinds];
};
struct DtypeKernels {
  LayerKernels cell[kCellKinds];
};
struct VariedKernels {
  RecurrenceKernels cell[kVariedKinds];  // by VariedKind
};

// Each defined in cpu/instances/<dtype>_<isa>.cpp; the chooser (isa.h) puts them together.
extern const DtypeKernels kFloat32Baseline, kFloat64Baseline, kBFloat16Baseline, kFloat16Baseline;
extern const DtypeKernels kFloat32Neon, kFloat64Neon, kBFloat16Neon, kFloat16Neon;
extern const DtypeKernels kFloat32Avx2, kFloat64Avx2, kBFloat16Avx2, kFloat16Avx2;
extern const DtypeKernels kFloat32Avx512, kFloat64Avx512, kBFloat16Avx512, kFloat16Avx512;
extern const DtypeKernels kBFloat16Avx512Bf16, kBFloat16Avx512Amx;
extern const VariedKernels kVariedFloat32Baseline, kVariedFloat64Baseline, kVariedFloat32Neon, kVariedFloat64Neon;
extern const VariedKernels kVariedFloat32Avx2, kVariedFloat64Avx2, kVariedFloat32Avx512, kVariedFloat64Avx512;
extern const QuantizedKernels kQuantizedBaseline, kQuantizedAvx2, kQuantizedAvx2Reduced;
extern const QuantizedKernels kQuantizedAvxVnni, kQuantizedAvx512Vnni, kQuantizedAvx512Amx;

}  // namespace fusedlstm::cpu
