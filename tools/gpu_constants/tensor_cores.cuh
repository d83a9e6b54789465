// Products of the tensor cores.
#pragma once

#include "run.cuh"

namespace fusedlstm::cuda {

// kSums independent sums a warp; weights in registers, as the kernels have them.
template <bool kTf32, int kSums>
__global__ void __launch_bounds__(kThreads, 1) mma_kernel(Run run) {
  if constexpr (kArch >= 800) {
    constexpr int kWeights = 16;
    uint32_t weight[kWeights][4];
    for (int i = 0; i < kWeights; ++i)
      for (int j = 0; j < 4; ++j) weight[i][j] = run.sink[(i * 4 + j) * kThreads + threadIdx.x];
    const uint32_t b0 = run.sink[threadIdx.x], b1 = run.sink[kThreads + threadIdx.x];
    float sum[kSums][4] = {};
    Stopwatch watch;
    for (int s = 0; s < run.steps; s += kWeights)
#pragma unroll
      for (int i = 0; i < kWeights; ++i) {
        const auto& a = weight[i];
        if constexpr (kTf32)
          mma_tf32(sum[i % kSums], a[0], a[1], a[2], a[3], b0, b1);
        else
          mma_bf16(sum[i % kSums], a[0], a[1], a[2], a[3], b0, b1);
      }
    watch.stop(run.cycles);
    for (int i = 0; i < kSums; ++i)
      for (int j = 0; j < 4; ++j) run.sink[(i * 4 + j) * kThreads + threadIdx.x] = float_bits(sum[i][j]);
  }
}

}  // namespace fusedlstm::cuda
