#include "cpu/kernel/kernels.h"

namespace fusedlstm::cpu {

const DtypeKernels kFloat32Neon = dtype_kernels<Float32Kit<Neon>>();

}  // namespace fusedlstm::cpu
