#include "cpu/kernel/kernels.h"

namespace fusedlstm::cpu {

const DtypeKernels kBFloat16Baseline = dtype_kernels<BFloat16Kit<Baseline>>();

}  // namespace fusedlstm::cpu
