#include "cpu/kernel/varied_kernels.h"

namespace fusedlstm::cpu {

const VariedKernels kVariedFloat64Neon = varied_kernels<Float64Kit<Neon>>();

}  // namespace fusedlstm::cpu
