// The product of one row with a weight that a block keeps on the chip, in float32: row i of the weight is thread i's.
#pragma once
#include "arithmetic.cuh"
#include "cuda/host/varied_resident.h"

namespace fusedlstm::cuda {

// The first columns are in registers, the others in shared memory, where a vector of all rows lies together, so that a
// warp reads consecutive vectors. Beyond the weight there are zeros, and so there have to be in the operand.
class ResidentProduct {
 public:
  // weight: [rows, columns]; shared: of ResidentSizes::weights_at(). All threads of the block have a row, of zeros
  // where the weight has none.
  __device__ __forceinline__ ResidentProduct(const void* weight, int rows, int columns, int vectors,
                                             SharedAddress shared)
      : vectors_(vectors),
        pitch_(static_cast<int>(blockDim.x) * kVectorBytes),
        shared_(shared + threadIdx.x * kVectorBytes) {
    const int row = static_cast<int>(threadIdx.x), count = row < rows ? columns : 0;
    const float* const own = static_cast<const float*>(weight) + row * columns;
    const auto load = [&](int k) { return k < count ? own[k] : 0.0f; };
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

  // This thread's row times an operand in shared memory.
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
