#include "cpu/kernel/varied_kernels.h"

namespace fusedlstm::cpu {

const VariedKernels kVariedFloat32Avx2 = varied_kernels<Float32Kit<Avx2>>();

}  // namespace fusedlstm::cpu
