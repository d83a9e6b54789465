#include "cpu/kernel/kernels.h"

namespace fusedlstm::cpu {

const DtypeKernels kBFloat16Neon = dtype_kernels<BFloat16Kit<Neon>>();

}  // namespace fusedlstm::cpu
