#include "cpu/kernel/kernels.h"

namespace fusedlstm::cpu {

const Kernels kAvx512Bf16Kernels = kernels<Avx512Bf16, Dot2Product>("avx512_bf16");

}  // namespace fusedlstm::cpu
