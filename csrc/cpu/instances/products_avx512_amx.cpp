#include "cpu/kernel/bfloat16_tiles.h"

namespace fusedlstm::cpu {

constinit thread_local TileRegisters Multiplying<Avx512Amx>::registers;

}  // namespace fusedlstm::cpu
