// The kernels that keep weight_hh on the chip for all steps of a batch row: which problems fit into them, and
// where everything is in the shared memory of a block.
//
// Plain C++. A block has a batch row, and a thread a row of weight_hh, or backward a column of one gate's rows: the
// first elements in registers, the others in shared memory. Everything is float32.
#pragma once
#include <cstdint>

#include "cells/varied.h"

namespace fusedlstm::cuda {

inline constexpr int kResidentThreads = 512;  // of a block, at most: half of their registers are for weights
inline constexpr int kHeldColumns = 56;       // that a thread has in registers
inline constexpr int kResidentSums = 6;       // over the block, of a step: two of each norm

// Sizes in values, of a cell of so many gates.
struct ResidentSizes {
  int64_t gates, hidden;

  constexpr int64_t rows() const { return gates * hidden; }
  constexpr int64_t threads() const { return (rows() + 31) / 32 * 32; }
  // Of four columns of a row, as far as they are in shared memory.
  constexpr int64_t shared_vectors() const { return hidden > kHeldColumns ? (hidden - kHeldColumns + 3) / 4 : 0; }
  constexpr int64_t operand() const { return kHeldColumns + shared_vectors() * 4; }  // h, and zeros behind it
  // Behind the sums over the block, which shared memory begins with: a multiple of a vector, as all that follows.
  constexpr int64_t block_sums() const { return (threads() / 32 * kResidentSums + 3) / 4 * 4; }
  constexpr int64_t weights() const { return shared_vectors() * 4 * threads(); }
};

// From the beginning of shared memory on: sums over the block, two operands (h, and h masked), c, sums, from_input,
// weights.
struct ResidentForward : ResidentSizes {
  constexpr int64_t operands_at() const { return block_sums(); }
  constexpr int64_t c_at() const { return operands_at() + 2 * operand(); }
  constexpr int64_t sums_at() const { return c_at() + operand(); }
  constexpr int64_t from_input_at() const { return sums_at() + threads(); }
  constexpr int64_t weights_at() const { return from_input_at() + threads(); }
  constexpr int64_t bytes() const { return 4 * (weights_at() + weights()); }
};

// Sums over the block, the gradients of h and c, those of the gates' sums from hidden and from input (an operand for
// each gate), the gates' parts of the product, weights.
struct ResidentBackward : ResidentSizes {
  constexpr int64_t d_states_at() const { return block_sums(); }
  constexpr int64_t d_sums_at() const { return d_states_at() + 2 * operand(); }
  constexpr int64_t d_from_input_at() const { return d_sums_at() + gates * operand(); }
  constexpr int64_t parts_at() const { return d_from_input_at() + gates * operand(); }
  constexpr int64_t weights_at() const { return parts_at() + threads(); }
  constexpr int64_t bytes() const { return 4 * (weights_at() + weights()); }
};

// Compute capability, times ten, from which on it runs: an older SM has room for few weights, and every architecture
// costs space in the library.
inline constexpr int kResidentCapability = 80;

// Whether there is a kernel of the cell.
constexpr bool has_resident(VariedKind kind) {
  return kind == VariedKind::kLstm || kind == VariedKind::kNormedGru;
}

}  // namespace fusedlstm::cuda
