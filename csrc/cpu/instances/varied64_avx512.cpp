#include "cpu/kernel/varied_kernels.h"

namespace fusedlstm::cpu {

const VariedKernels kVariedFloat64Avx512 = varied_kernels<Float64Kit<Avx512>>();

}  // namespace fusedlstm::cpu
