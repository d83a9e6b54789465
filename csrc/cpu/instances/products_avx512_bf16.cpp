#include "cpu/kernel/tile.h"

namespace fusedlstm::cpu {

template void multiply<Avx512Bf16, Dot2Product, false>(const Factors<Dot2Product>&, int, int);
template void multiply<Avx512Bf16, Dot2Product, true>(const Factors<Dot2Product>&, int, int);

}  // namespace fusedlstm::cpu
