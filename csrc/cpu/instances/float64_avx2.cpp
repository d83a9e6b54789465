#include "cpu/kernel/kernels.h"

namespace fusedlstm::cpu {

const DtypeKernels kFloat64Avx2 = dtype_kernels<Float64Kit<Avx2>>();

}  // namespace fusedlstm::cpu
