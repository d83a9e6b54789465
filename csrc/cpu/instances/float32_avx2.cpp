#include "cpu/kernel/kernels.h"

namespace fusedlstm::cpu {

const DtypeKernels kFloat32Avx2 = dtype_kernels<Float32Kit<Avx2>>();

}  // namespace fusedlstm::cpu
