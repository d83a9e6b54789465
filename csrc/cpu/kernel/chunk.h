// How many time steps have their pre-activations computed at once: a forward recurrence goes through chunks of them.
#pragma once

#include "cpu/division.h"

namespace fusedlstm::cpu {

inline constexpr int64_t kChunkBytes = 256 << 10;  // of pre-activations: a quarter of a usual L2 cache
inline constexpr int64_t kMaxChunkSteps = 256;

// Into how many chunks, as even as can be, `steps` are divided, of `rows` rows each, which have `row_bytes` of
// pre-activations; at most `most` steps in one. Each reads all of W_ih, also a last one of few rows.
constexpr int64_t chunks_of(int64_t steps, int64_t rows, int64_t row_bytes, int64_t most = kMaxChunkSteps) {
  if (rows < 1) rows = 1;
  if (steps < 1) steps = 1;
  int64_t n = kChunkBytes / (row_bytes > 0 ? rows * row_bytes : 1);
  if (n * rows < kChunkRows) n = (kChunkRows + rows - 1) / rows;
  if (n > kMaxChunkSteps) n = kMaxChunkSteps;
  if (n > most) n = most;
  return (steps + n - 1) / n;
}

// The most steps of a chunk.
constexpr int64_t steps_of_chunk(int64_t steps, int64_t chunks) {
  return (steps + chunks - 1) / chunks;
}

}  // namespace fusedlstm::cpu
