#include "cpu/kernel/kernels.h"

namespace fusedlstm::cpu {

const DtypeKernels kBFloat16Avx2 = dtype_kernels<BFloat16Kit<Avx2>>();

}  // namespace fusedlstm::cpu
