#include "cpu/kernel/kernels.h"

namespace fusedlstm::cpu {

const DtypeKernels kFloat16Avx2 = dtype_kernels<Float16Kit<Avx2>>();

}  // namespace fusedlstm::cpu
