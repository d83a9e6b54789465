#include "cpu/kernel/quantized_kernels.h"

namespace fusedlstm::cpu {

const QuantizedKernels kQuantizedAvx2 = quantized_kernels<QuantizedAvx2>();

}  // namespace fusedlstm::cpu
