// The recurrent product on one SM: weights in registers, what does not fit of them and the operand in shared memory,
// tensor cores or FFMA.
//
// One byte layout for every arithmetic. K is cut into chunks of 64 bytes. Lane (g = lane / 4, t = lane % 4)
// owns vector t (16 bytes) of a chunk in weight row g of each 8-row group. K may be permuted freely as long as both
// operands agree, so that the 16 bytes, as they lie in memory, serve as the operands of two mma k-steps: words 2s and
// 2s + 1 are k-step s. The operand has the same chunks per batch row n, at [chunk][n][64 bytes]: the 32 lanes of a warp
// then read 512 consecutive bytes, without bank conflicts and without padding.
#pragma once
#include <algorithm>

#include "cuda/host/plan.h"
#include "primitives.cuh"

namespace fusedlstm::cuda {

inline constexpr int kChunkBytes = 64;
inline constexpr int kVectorBytes = 16;

// Bytes from a chunk of an operand to vector v of its batch row n. Swizzled, the four lanes t of a group that write
// elements of the same unit into batch rows 2t, or 2t + 1, reach different banks, and vectors are read without
// conflicts all the same.
template <bool kSwizzled>
__device__ __forceinline__ int operand_offset(int n, int v) {
  return n * kChunkBytes + (kSwizzled ? v ^ n / 2 % 4 : v) * kVectorBytes;
}

// A lane's vectors of two weight rows, the low one from the rows g of an m16 operand and the high one from g + 8. Words
// stand as two mma k-steps take them, low, high, low, high: so that they are loaded into the registers they are used
// in.
struct RowPair {
  Vec4 step[2];

  RowPair() = default;
  __device__ __forceinline__ RowPair(const Vec4& low, const Vec4& high)
      : step{{low.w[0], high.w[0], low.w[1], high.w[1]}, {low.w[2], high.w[2], low.w[3], high.w[3]}} {}
  // Word j of the low or the high vector.
  __device__ __forceinline__ uint32_t word(int is_high, int j) const { return step[j / 2].w[j % 2 * 2 + is_high]; }
};

// operand: the bits that an element has in the product; operands: those of a vector. mma: sums of 16 rows and 8
// columns, d += a b.
struct BFloat16Math {
  using scalar_t = BFloat16;
  static constexpr Arithmetic kArithmetic = Arithmetic::kBFloat16;
  static constexpr bool kTensorCores = true;
  static __device__ __forceinline__ uint16_t operand(BFloat16 x) { return x.bits; }
  static __device__ __forceinline__ Vec4 operands(Vec4 v) { return v; }
  static __device__ __forceinline__ void mma(float* d, const RowPair& a, const Vec4& b) {
    if constexpr (kArch >= 800) {
#pragma unroll
      for (int s = 0; s < 2; ++s)
        mma_bf16(d, a.step[s].w[0], a.step[s].w[1], a.step[s].w[2], a.step[s].w[3], b.w[2 * s], b.w[2 * s + 1]);
    }
  }
};

struct Float16Math {
  using scalar_t = Float16;
  static constexpr Arithmetic kArithmetic = Arithmetic::kFloat16;
  static constexpr bool kTensorCores = true;
  static __device__ __forceinline__ uint16_t operand(Float16 x) { return x.bits; }
  static __device__ __forceinline__ Vec4 operands(Vec4 v) { return v; }
  static __device__ __forceinline__ void mma(float* d, const RowPair& a, const Vec4& b) {
    if constexpr (kArch >= 800) {
#pragma unroll
      for (int s = 0; s < 2; ++s)
        mma_f16(d, a.step[s].w[0], a.step[s].w[1], a.step[s].w[2], a.step[s].w[3], b.w[2 * s], b.w[2 * s + 1]);
    } else {  // sm_75 has half the k-step
#pragma unroll
      for (int s = 0; s < 4; ++s) mma_f16_k8(d, a.word(0, s), a.word(1, s), b.w[s]);
    }
  }
};

struct Tf32Math {
  using scalar_t = float;
  static constexpr Arithmetic kArithmetic = Arithmetic::kTf32;
  static constexpr bool kTensorCores = true;
  static __device__ __forceinline__ uint32_t operand(float x) {
    if constexpr (kArch >= 800) return round_to_tf32(x);
    return float_bits(x);
  }
  static __device__ __forceinline__ Vec4 operands(Vec4 v) {
#pragma unroll
    for (int j = 0; j < 4; ++j) v.w[j] = operand(bits_float(v.w[j]));
    return v;
  }
  static __device__ __forceinline__ void mma(float* d, const RowPair& a, const Vec4& b) {
    if constexpr (kArch >= 800) {
#pragma unroll
      for (int s = 0; s < 2; ++s)
        mma_tf32(d, a.step[s].w[0], a.step[s].w[1], a.step[s].w[2], a.step[s].w[3], b.w[2 * s], b.w[2 * s + 1]);
    }
  }
};

struct Float32Math {
  using scalar_t = float;
  static constexpr Arithmetic kArithmetic = Arithmetic::kFloat32;
  static constexpr bool kTensorCores = false;
  static __device__ __forceinline__ uint32_t operand(float x) { return float_bits(x); }
  static __device__ __forceinline__ Vec4 operands(Vec4 v) { return v; }
};

// One warp's product: acc[r][e] += sum over the warp's K of weight[row r of group g][k] * operand[k][batch row 2t + e],
// for one tile of 8 batch rows. kRows rows per lane, in pairs; kChunks chunks of K, of which the weights of the last
// kSharedChunks are in shared memory, [chunk][row][lane][16 bytes]: every lane reads what it wrote itself, so that
// nobody waits for anybody.
template <class Math, int kRows, int kChunks, int kSharedChunks, bool kSwizzled>
struct Product {
  static_assert(kRows % 2 == 0, "an mma takes rows in two groups of 8");
  static constexpr int kHeld = kChunks - kSharedChunks;
  static constexpr int kSharedBytes = kSharedChunks * kRows * 32 * kVectorBytes;  // of one warp
  RowPair held[kRows / 2][kHeld];
  SharedAddress shared;  // kSharedBytes of the warp's own
  // Bytes from an operand's start to the warp's first chunk, and from there to the lane's vector. For tensor cores one
  // register has the sum: some kernels have no other. Of FFMA's, one that is as full spills by just that.
  uint32_t part_of_k, first_vector;

  Product() = default;
  __device__ __forceinline__ Product(SharedAddress shared, uint32_t part) : shared(shared) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    if constexpr (Math::kTensorCores) {
      part_of_k = 0;
      first_vector = in_register(part + operand_offset<kSwizzled>(g, t));
    } else {
      part_of_k = in_register(part);
      first_vector = in_register(static_cast<uint32_t>(operand_offset<kSwizzled>(0, t)));
    }
  }

  // The lane's weights of rows r and r + 1 in chunk c: one of the first kHeld, or one of the others.
  __device__ __forceinline__ void hold_weight(int r, int c, const RowPair& pair) { held[r / 2][c] = pair; }
  __device__ __forceinline__ void share_weight(int r, int c, const RowPair& pair) {
    store_shared128(shared_vector(r, c), pair.step[0]);
    store_shared128(shared_vector(r + 1, c), pair.step[1]);
  }
  __device__ __forceinline__ RowPair weight(int r, int c) const {
    if (c < kHeld) return held[r / 2][c];
    RowPair pair;
    pair.step[0] = load_shared128(shared_vector(r, c));
    pair.step[1] = load_shared128(shared_vector(r + 1, c));
    return pair;
  }

  // operand: its batch row 0. chunk_stride: bytes between its chunks.
  __device__ __forceinline__ void multiply(SharedAddress operand, int chunk_stride, float (&acc)[kRows][2]) const {
    operand += part_of_k;
    operand += first_vector;
    if constexpr (Math::kTensorCores) {
      // A chain of dependent mma instructions is latency. Four chains a warp, of more sums per row where there are few
      // rows, keep the tensor cores busy; on sm_75 two warps keep the slower ones busy with one sum per row.
      constexpr int kSums = kRows >= 8 || kArch < 800 ? 1 : std::min(8 / kRows, kChunks);
      float sum[kSums][kRows][2] = {};
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int e = 0; e < 2; ++e) sum[0][r][e] = acc[r][e];
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const Vec4 b = load_shared128(operand + c * chunk_stride);
#pragma unroll
        for (int r = 0; r < kRows; r += 2) Math::mma(sum[c % kSums][r], weight(r, c), b);
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          acc[r][e] = sum[0][r][e];
#pragma unroll
          for (int i = 1; i < kSums; ++i) acc[r][e] += sum[i][r][e];
        }
    } else {
      // K is split over the 4 lanes of a group, each with all 8 batch rows; then they exchange sums, so that lane t
      // ends with batch rows 2t and 2t + 1, as after an mma.
      float sum[kRows][8] = {};
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        RowPair pair[kRows / 2];
#pragma unroll
        for (int r = 0; r < kRows; r += 2) pair[r / 2] = weight(r, c);
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          const Vec4 b = load_shared128(operand + n * kChunkBytes + c * chunk_stride);
#pragma unroll
          for (int r = 0; r < kRows; ++r)
#pragma unroll
            for (int j = 0; j < 4; ++j)
              sum[r][n] = fmaf(bits_float(pair[r / 2].word(r % 2, j)), bits_float(b.w[j]), sum[r][n]);
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float half[4];
#pragma unroll
        for (int n = 0; n < 4; ++n) half[n] = keep_and_give(sum[r][n], sum[r][n + 4], 2);
#pragma unroll
        for (int e = 0; e < 2; ++e) acc[r][e] += keep_and_give(half[e], half[e + 2], 1);
      }
    }
  }

 private:
  __device__ __forceinline__ SharedAddress shared_vector(int r, int c) const {
    return shared + (((c - kHeld) * kRows + r) * 32 + threadIdx.x % 32) * kVectorBytes;
  }
  // Lanes with bit `mask` clear keep the sum of both lanes' `low`, the others that of `high`.
  static __device__ __forceinline__ float keep_and_give(float low, float high, int mask) {
    const bool upper = threadIdx.x & mask;
    return (upper ? high : low) + bits_float(shuffle_xor(float_bits(upper ? low : high), mask));
  }
};

}  // namespace fusedlstm::cuda
