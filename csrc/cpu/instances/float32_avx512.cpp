#include "cpu/kernel/kernels.h"

namespace fusedlstm::cpu {

const DtypeKernels kFloat32Avx512 = dtype_kernels<Float32Kit<Avx512>>();

}  // namespace fusedlstm::cpu
