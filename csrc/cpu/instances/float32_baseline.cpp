#include "cpu/kernel/kernels.h"

namespace fusedlstm::cpu {

const DtypeKernels kFloat32Baseline = dtype_kernels<Float32Kit<Baseline>>();

}  // namespace fusedlstm::cpu
