// The product of one row with a weight that a block keeps on the chip, in float32: a thread has so many of its elements
// as W_hh has columns, of one row or, on the way back, of one column of a gate's rows.
#pragma once
#include "arithmetic.cuh"
#include "cuda/host/varied_resident.h"

namespace fusedlstm::cuda {

// The first elements are in registers, the others in shared memory, where a vector of all threads lies together, so
// that a warp reads consecutive vectors. Beyond the weight there are zeros, and so there have to be in the operand.
class ResidentProduct {
 public:
  // value_of(k): element k of this thread, for k < count; shared: of the pass's weights_at(). All threads of the block
  // have one, of zeros where the weight has nothing for them.
  template <class ValueOf>
  __device__ __forceinline__ ResidentProduct(int count, ValueOf value_of, int vectors, SharedAddress shared)
      : vectors_(vectors),
        pitch_(static_cast<int>(blockDim.x) * kVectorBytes),
        shared_(shared + threadIdx.x * kVectorBytes) {
    const auto load = [&](int k) { return k < count ? value_of(k) : 0.0f; };
#pragma unroll
    for (int k = 0; k < kHeldColumns; ++k) held_[k] = load(k);
#pragma unroll 1
    for (int v = 0; v < vectors_; ++v) {
      Vec4 w;
#pragma unroll
      for (int j = 0; j < kWords; ++j) w.w[j] = float_bits(load(kHeldColumns + v * kWords + j));
      store_shared128(shared_ + v * pitch_, w);
    }
  }

  // This thread's elements times an operand in shared memory.
  __device__ __forceinline__ float of(SharedAddress operand) const {
    float sums[kWords] = {};
#pragma unroll
    for (int k = 0; k < kHeldColumns; k += kWords) {
      const Vec4 x = load_shared128(operand + k * 4);
#pragma unroll
      for (int j = 0; j < kWords; ++j) sums[j] += held_[k + j] * bits_float(x.w[j]);
    }
    operand += kHeldColumns * 4;
#pragma unroll 2
    for (int v = 0; v < vectors_; ++v) {
      const Vec4 x = load_shared128(operand + v * kVectorBytes), w = load_shared128(shared_ + v * pitch_);
#pragma unroll
      for (int j = 0; j < kWords; ++j) sums[j] += bits_float(w.w[j]) * bits_float(x.w[j]);
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }

 private:
  static constexpr int kWords = 4;  // of a vector

  const int vectors_, pitch_;
  const SharedAddress shared_;
  float held_[kHeldColumns];
};

}  // namespace fusedlstm::cuda
