#include "cpu/kernel/kernels.h"

namespace fusedlstm::cpu {

const Kernels kAvx512Kernels = kernels<Avx512>("avx512");

}  // namespace fusedlstm::cpu
