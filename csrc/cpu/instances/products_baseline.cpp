#include "cpu/kernel/tile.h"

namespace fusedlstm::cpu {

template void multiply<Baseline, FullProduct<float>, false>(const Factors<FullProduct<float>>&, int, int);
template void multiply<Baseline, FullProduct<float>, true>(const Factors<FullProduct<float>>&, int, int);
template void multiply<Baseline, FullProduct<double>, false>(const Factors<FullProduct<double>>&, int, int);
template void multiply<Baseline, FullProduct<double>, true>(const Factors<FullProduct<double>>&, int, int);

}  // namespace fusedlstm::cpu
