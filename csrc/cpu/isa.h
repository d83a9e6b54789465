// The one place where the instruction set of the CPU kernels is chosen.
//
// Automatic: the widest set that this processor has, once per process; FUSEDLSTM_CPU_ISA names another one. Tests force
// one by name at any time. A name that this machine cannot run is an error, never a silent fallback.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernel_table.h"

namespace fusedlstm::cpu {

// Those of this machine, narrowest first.
std::vector<const char*> runnable_isas();

// The instruction set in use. Throws std::runtime_error if FUSEDLSTM_CPU_ISA names one that cannot run here.
const char* active_isa();

// Why it is that one, in words.
const char* reason_of_isa();

// From now on the one of this name: "baseline", "neon", "avx2", "avx_vnni", "avx512", "avx512_vnni", "avx512_bf16",
// "avx512_amx"; an empty string returns to automatic. Throws std::runtime_error on any other name.
void force_isa(const std::string& isa);

// The kernels of a cell and a dtype: of this instruction set, or of the next narrower one that has some of its own.
// Throws std::runtime_error if it cannot run here.
const LayerKernels& kernels_of(std::string_view isa, CellKind cell, Dtype dtype);

// Those of the set in use.
inline const LayerKernels& active_kernels(CellKind cell, Dtype dtype) {
  return kernels_of(active_isa(), cell, dtype);
}

// Those of int8 layers, of the set in use. is_reduced: all weights are from -64 to 64.
const QuantizedLayerKernels& active_quantized_kernels(CellKind cell, bool is_reduced);

// Those of a recurrence with variants, of the set in use; acc: float32 or float64.
const RecurrenceKernels& active_recurrence_kernels(VariedKind kind, Dtype acc);

}  // namespace fusedlstm::cpu
