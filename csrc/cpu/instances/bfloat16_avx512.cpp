#include "cpu/kernel/kernels.h"

namespace fusedlstm::cpu {

const DtypeKernels kBFloat16Avx512 = dtype_kernels<BFloat16Kit<Avx512>>();

}  // namespace fusedlstm::cpu
