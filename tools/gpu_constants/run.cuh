// What every measured kernel is told, and the sizes that all have in common.
#pragma once

#include "probes.cuh"

namespace fusedlstm::cuda {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kVectorBytes = 16, kChunkBytes = 64;

struct Run {
  int steps;
  long long* cycles;  // of the first CTA, for all steps; negative if a peer did not come
  uint32_t* sink;     // keeps results alive
};

}  // namespace fusedlstm::cuda
