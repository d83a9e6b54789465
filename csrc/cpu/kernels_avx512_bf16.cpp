#include "cpu/kernel/kernels.h"

namespace fusedlstm::cpu {

// Its instructions multiply bfloat16 and nothing else.
const Kernels kAvx512Bf16Kernels = {"avx512_bf16",
                                    {{}, {}, dtype_kernels<Kit<Avx512Bf16, BFloat16Storage, Dot2Product>>(), {}}};

}  // namespace fusedlstm::cpu
