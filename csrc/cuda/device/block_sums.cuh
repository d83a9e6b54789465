// Sums over all threads of a block, always in the same order.
#pragma once
#include <bit>

#include "primitives.cuh"

namespace fusedlstm::cuda {

// Blocks of whole warps, 32 of them at most. Each sum has memory of its own, so that one barrier is enough for it.
template <class acc_t>
class BlockSums {
 public:
  // Bytes of shared memory, for so many sums of a block.
  static constexpr size_t bytes(int threads, int sums) { return threads / 32 * sums * sizeof(acc_t); }

  // Uses shared memory from its beginning.
  __device__ __forceinline__ BlockSums() : parts_(reinterpret_cast<acc_t*>(shared_memory())) {}

  // Of the values that the threads have; every thread gets the sum, and all must call it.
  __device__ __forceinline__ acc_t of(acc_t value) {
    const unsigned lane = threadIdx.x % 32, warps = blockDim.x / 32;
    const acc_t of_own_warp = of_warp(value);
    if (lane == 0) parts_[threadIdx.x / 32] = of_own_warp;
    block_sync();
    const acc_t part = lane < warps ? parts_[lane] : acc_t(0);
    parts_ += warps;
    return of_warp(part);
  }

 private:
  acc_t* parts_;  // of the next sum: one of each warp

  static __device__ __forceinline__ acc_t of_warp(acc_t value) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) value += of_lane_xor(value, mask);
    return value;
  }
  // The value of lane (own lane ^ mask).
  static __device__ __forceinline__ acc_t of_lane_xor(acc_t value, int mask) {
    struct Words {
      uint32_t w[sizeof(acc_t) / 4];
    };
    Words words = std::bit_cast<Words>(value);
#pragma unroll
    for (uint32_t& word : words.w) word = shuffle_xor(word, mask);
    return std::bit_cast<acc_t>(words);
  }
};

}  // namespace fusedlstm::cuda
