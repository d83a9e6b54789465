// What a thread holds while its kernel multiplies: nothing, but for sets with tile registers, which it has to shape and
// to give back.
#pragma once

#include "tile_registers.h"

namespace fusedlstm::cpu {

template <class Isa>
struct Multiplying {};

#if defined(__AMX_TILE__)
template <>
struct Multiplying<Avx512Amx> {
  static constinit thread_local TileRegisters registers;  // cpu/instances/products_avx512_amx.cpp

  Multiplying() = default;
  Multiplying(const Multiplying&) = delete;
  Multiplying& operator=(const Multiplying&) = delete;
  ~Multiplying() { registers.release(); }
};
#endif

}  // namespace fusedlstm::cpu
