#include "cpu/kernel/varied_kernels.h"

namespace fusedlstm::cpu {

const VariedKernels kVariedFloat32Baseline = varied_kernels<Float32Kit<Baseline>>();

}  // namespace fusedlstm::cpu
