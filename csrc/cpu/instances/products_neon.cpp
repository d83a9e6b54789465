#include "cpu/kernel/tile.h"

namespace fusedlstm::cpu {

template void multiply<Neon, FullProduct<float>, false>(const Factors<FullProduct<float>>&, int, int);
template void multiply<Neon, FullProduct<float>, true>(const Factors<FullProduct<float>>&, int, int);
template void multiply<Neon, FullProduct<double>, false>(const Factors<FullProduct<double>>&, int, int);
template void multiply<Neon, FullProduct<double>, true>(const Factors<FullProduct<double>>&, int, int);

}  // namespace fusedlstm::cpu
