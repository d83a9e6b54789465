#include "cpu/kernel/varied_kernels.h"

namespace fusedlstm::cpu {

const VariedKernels kVariedFloat32Avx512 = varied_kernels<Float32Kit<Avx512>>();

}  // namespace fusedlstm::cpu
