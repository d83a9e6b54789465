#include "cpu/kernel/kernels.h"

namespace fusedlstm::cpu {

const DtypeKernels kFloat64Neon = dtype_kernels<Float64Kit<Neon>>();

}  // namespace fusedlstm::cpu
