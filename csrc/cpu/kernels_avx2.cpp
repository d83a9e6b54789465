#include "cpu/kernel/kernels.h"

namespace fusedlstm::cpu {

const Kernels kAvx2Kernels = kernels<Avx2>("avx2");

}  // namespace fusedlstm::cpu
