#include "cpu/kernel/kernels.h"

namespace fusedlstm::cpu {

const DtypeKernels kBFloat16Avx512Bf16 = dtype_kernels<Kit<Avx512Bf16, BFloat16Storage, Dot2Product>>();

}  // namespace fusedlstm::cpu
