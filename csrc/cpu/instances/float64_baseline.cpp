#include "cpu/kernel/kernels.h"

namespace fusedlstm::cpu {

const DtypeKernels kFloat64Baseline = dtype_kernels<Float64Kit<Baseline>>();

}  // namespace fusedlstm::cpu
