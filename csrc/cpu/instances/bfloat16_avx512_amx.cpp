#include "cpu/kernel/kernels.h"

namespace fusedlstm::cpu {

const DtypeKernels kBFloat16Avx512Amx = dtype_kernels<Kit<Avx512Amx, BFloat16Storage, Dot2Product>>();

}  // namespace fusedlstm::cpu
