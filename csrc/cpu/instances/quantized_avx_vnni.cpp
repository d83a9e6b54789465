#include "cpu/kernel/quantized_kernels.h"

namespace fusedlstm::cpu {

const QuantizedKernels kQuantizedAvxVnni = quantized_kernels<QuantizedAvxVnni>();

}  // namespace fusedlstm::cpu
