#include "cpu/kernel/quantized_kernels.h"

namespace fusedlstm::cpu {

const QuantizedKernels kQuantizedBaseline = quantized_kernels<QuantizedBaseline>();

}  // namespace fusedlstm::cpu
