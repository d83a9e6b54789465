#include "cpu/kernel/kernels.h"

namespace fusedlstm::cpu {

const DtypeKernels kFloat16Neon = dtype_kernels<Float16Kit<Neon>>();

}  // namespace fusedlstm::cpu
