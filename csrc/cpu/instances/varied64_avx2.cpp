#include "cpu/kernel/varied_kernels.h"

namespace fusedlstm::cpu {

const VariedKernels kVariedFloat64Avx2 = varied_kernels<Float64Kit<Avx2>>();

}  // namespace fusedlstm::cpu
