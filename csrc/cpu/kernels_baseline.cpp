#include "cpu/kernel/kernels.h"

namespace fusedlstm::cpu {

const Kernels kBaselineKernels = kernels<Baseline>("baseline");

}  // namespace fusedlstm::cpu
