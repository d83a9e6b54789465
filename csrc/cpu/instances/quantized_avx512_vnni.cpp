#include "cpu/kernel/quantized_kernels.h"

namespace fusedlstm::cpu {

const QuantizedKernels kQuantizedAvx512Vnni = quantized_kernels<QuantizedAvx512Vnni>();

}  // namespace fusedlstm::cpu
