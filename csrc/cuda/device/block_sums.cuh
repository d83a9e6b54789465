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

  // Turns the values that the threads have into their sums, of each one by itself; every thread gets them, and all must
  // call it. Several at once take hardly longer than one: what takes long is that a sum waits for the one before it.
  template <int kCount>
  __device__ __forceinline__ void of(acc_t (&values)[kCount]) {
    const unsigned lane = threadIdx.x % 32, warps = blockDim.x / 32;
    of_warp(values);
    if (lane == 0)
      for (int k = 0; k < kCount; ++k) parts_[k * warps + threadIdx.x / 32] = values[k];
    block_sync();
    for (int k = 0; k < kCount; ++k) values[k] = lane < warps ? parts_[k * warps + lane] : acc_t(0);
    parts_ += kCount * warps;
    of_warp(values);
  }

 private:
  acc_t* parts_;  // of the next sum: one of each warp

  template <int kCount>
  static __device__ __forceinline__ void of_warp(acc_t (&values)[kCount]) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2)
      for (acc_t& value : values) value += of_lane_xor(value, mask);
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
