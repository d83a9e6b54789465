// Exchanges between all CTAs of a grid, through L2.
#pragma once

#include "run.cuh"

namespace fusedlstm::cuda {

constexpr uint32_t kNotWritten = ~0u;

// Waits until all CTAs have come here for the time-th time; counter: zero before the launch.
__device__ __forceinline__ void grid_barrier(Stopwatch& watch, unsigned* counter, int time) {
  block_sync();
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(counter, 1);
    watch.wait_until([&] { return *static_cast<volatile unsigned*>(counter) >= gridDim.x * time; });
    __threadfence();
  }
  block_sync();
}

// Every CTA publishes its share of `bytes`, at most a vector for each thread, and fetches all of them: [batch row][K],
// of which a warp fetches an eighth of K of all rows, 64 bytes of a row at a time, in rounds of up to 8 vectors of a
// lane. memory: `bytes` per step, all ones before the launch. kBarrier: read after a barrier of all CTAs, instead of
// again and again.
template <bool kBarrier>
__global__ void __launch_bounds__(kThreads, 1)
    grid_exchange_kernel(Run run, char* memory, unsigned* counter, int64_t bytes) {
  constexpr int kInFlight = 8;
  const int vectors = static_cast<int>(bytes) / gridDim.x / kVectorBytes, rows = std::min(vectors, 8);
  const int64_t pitch = bytes / rows;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4;
  const int chunks = static_cast<int>(pitch) / kWarps / kChunkBytes;
  const int64_t first = row * pitch + int64_t{warp} * chunks * kChunkBytes + lane % 4 * kVectorBytes;
  const int64_t published =
      threadIdx.x % rows * pitch + (int64_t{blockIdx.x} * (vectors / rows) + threadIdx.x / rows) * kVectorBytes;
  const SharedAddress arrival = shared_address(shared_memory()) + threadIdx.x * kVectorBytes;
  Stopwatch start;
  grid_barrier(start, counter, 1);
  Stopwatch watch;
  for (int s = 0; s < run.steps; ++s) {
    char* step = memory + s * bytes;
    if (threadIdx.x < vectors) store_relaxed128(step + published, Vec4{{1, 1, 1, 1}});
    if constexpr (kBarrier) grid_barrier(watch, counter, s + 2);
    for (int c = 0; c < chunks; c += kInFlight) {
      Vec4 v[kInFlight];
      bool again;
      do {
        bool is_missing = false;
#pragma unroll
        for (int i = 0; i < kInFlight; ++i) {
          v[i] = Vec4{};
          if (row < rows && c + i < chunks) v[i] = load_relaxed128(step + first + (c + i) * kChunkBytes);
        }
#pragma unroll
        for (int i = 0; i < kInFlight; ++i)
          for (int j = 0; j < 4; ++j) is_missing |= v[i].w[j] == kNotWritten;
        again = warp_any(is_missing && !watch.is_late());
      } while (again);
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) store_shared128(arrival, v[i]);
    }
    block_sync();
  }
  watch.stop(run.cycles);
  run.sink[blockIdx.x * kThreads + threadIdx.x] = load_shared32(arrival);
}

// Where the CTAs of a launch run. Each stays until the last has surely started.
__global__ void __launch_bounds__(kThreads) placement_kernel(Run run) {
  const long long start = clock64();
  if (threadIdx.x == 0) run.sink[blockIdx.x] = sm_id();
  if (threadIdx.x == 0 && blockIdx.x == 0) *run.cycles = 0;
  while (clock64() - start < 200'000) {
  }
}

}  // namespace fusedlstm::cuda
