#include "cpu/kernel/varied_kernels.h"

namespace fusedlstm::cpu {

const VariedKernels kVariedFloat64Baseline = varied_kernels<Float64Kit<Baseline>>();

}  // namespace fusedlstm::cpu
