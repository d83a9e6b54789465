#include "cpu/kernel/kernels.h"

namespace fusedlstm::cpu {

const DtypeKernels kFloat64Avx512 = dtype_kernels<Float64Kit<Avx512>>();

}  // namespace fusedlstm::cpu
