#include "cpu/kernel/varied_kernels.h"

namespace fusedlstm::cpu {

const VariedKernels kVariedFloat32Neon = varied_kernels<Float32Kit<Neon>>();

}  // namespace fusedlstm::cpu
