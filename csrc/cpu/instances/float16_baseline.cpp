#include "cpu/kernel/kernels.h"

namespace fusedlstm::cpu {

const DtypeKernels kFloat16Baseline = dtype_kernels<Float16Kit<Baseline>>();

}  // namespace fusedlstm::cpu
