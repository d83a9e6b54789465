#include "cpu/kernel/kernels.h"

namespace fusedlstm::cpu {

const DtypeKernels kFloat16Avx512 = dtype_kernels<Float16Kit<Avx512>>();

}  // namespace fusedlstm::cpu
