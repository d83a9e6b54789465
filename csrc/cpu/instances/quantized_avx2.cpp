#include "cpu/kernel/quantized_kernels.h"

namespace fusedlstm::cpu {

const QuantizedKernels kQuantizedAvx2 = quantized_kernels<QuantizedAvx2>();
const QuantizedKernels kQuantizedAvx2Reduced = quantized_kernels<QuantizedAvx2Reduced>();

}  // namespace fusedlstm::cpu
