#include "cpu/kernel/quantized_kernels.h"

namespace fusedlstm::cpu {

const QuantizedKernels kQuantizedAvx512Amx = quantized_kernels<QuantizedAvx512Amx>();

}  // namespace fusedlstm::cpu
