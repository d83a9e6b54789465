// Which cells (a hidden unit of a batch row) a thread of a resident kernel owns, and how their sums reach it from the
// lanes that multiplied.
//
// Level 2. Lane (g = lane / 4, t = lane % 4) has the sums of batch rows 2t and 2t + 1, for the weight rows g of its
// groups of 8. Where these are whole, it owns those cells itself. Otherwise sums go through shared memory: of the CTA,
// from the warps that shared K, or of the CTA that owns the cells, from all CTAs of the cluster.
#pragma once
#include "arithmetic.cuh"

namespace fusedlstm::gpu {

inline constexpr int kThreads = KernelShape::kWarps * 32;

// Row r of the lane's group g: the unit of the CTA that it belongs to.
template <KernelShape kShape>
__device__ __forceinline__ int unit_of_row(int r, int row_warp, int g) {
  return (row_warp * (kShape.rows_per_lane / kShape.sums()) + r / kShape.sums()) * 8 + g;
}

template <class Math, KernelShape kShape>
inline constexpr int kUnitsOf = kShape.units(sizeof(typename Math::scalar_t));

template <class Math, KernelShape kShape, bool kWholeSums = kShape.whole_sums()>
struct OwnedCells;

template <class Math, KernelShape kShape>
struct OwnedCells<Math, kShape, true> {
  static constexpr int kCount = kShape.cells_per_thread(sizeof(typename Math::scalar_t)), kUnitsOwned = kCount / 2;
  static_assert(kUnitsOwned == kShape.rows_per_lane / kShape.sums());

  // Of cell e: its unit among those owned, and its batch row after that of the unit's first cell.
  static constexpr int unit_index(int e) { return e / 2; }
  static constexpr int rows_on(int e) { return e % 2; }

  __device__ __forceinline__ int unit(int e) const {
    return unit_of_row<kShape>(e / 2 * kShape.sums(), threadIdx.x / 32, threadIdx.x % 32 / 4);
  }
  __device__ __forceinline__ int row(int e) const { return threadIdx.x % 4 * 2 + e % 2; }
  __device__ __forceinline__ bool exists(int) const { return true; }
};

// Evenly spaced, as then are all their indices. Neighbouring threads have neighbouring units, so that they reach
// neighbouring memory. Where sums come in pairs of batch rows, two of them share a unit.
template <class Math, KernelShape kShape>
struct OwnedCells<Math, kShape, false> {
  static constexpr int kUnits = kUnitsOf<Math, kShape>, kUnitsOwned = 1;
  static constexpr int kCount = kShape.cells_per_thread(sizeof(typename Math::scalar_t));
  static constexpr int kAdjacentRows = kShape.sends_sums() ? 2 : 1;
  static_assert(kThreads % (kUnits * kAdjacentRows) == 0, "a thread has one unit");
  static constexpr int kRowsApart = kThreads / kUnits;
  static constexpr bool kAllExist = kShape.batch_rows() % kRowsApart == 0;

  static constexpr int unit_index(int) { return 0; }
  static constexpr int rows_on(int e) { return e * kRowsApart; }

  __device__ __forceinline__ int unit(int) const { return threadIdx.x / kAdjacentRows % kUnits; }
  __device__ __forceinline__ int row(int e) const {
    return threadIdx.x / (kUnits * kAdjacentRows) * kAdjacentRows + threadIdx.x % kAdjacentRows + e * kRowsApart;
  }
  // Threads beyond the last cell of a small tile own none.
  __device__ __forceinline__ bool exists(int e) const { return kAllExist || row(e) < kShape.batch_rows(); }
};

// One barrier of the CTA per position separates the writers of partial sums from their readers. There are two buffers,
// so that nobody overwrites sums still being read: whoever writes those of position s + 2 has passed the barrier of s +
// 1, which their reader reached after reading.
//
// float [2 buffers][k_splits][batch row][unit][sum], 4 floats of padding a batch row against bank conflicts between the
// rows 2t of a warp.
template <class Math, KernelShape kShape>
struct PartialSums {
  static constexpr int kSums = kShape.sums();
  static constexpr int kRowBytes = (kSums * kUnitsOf<Math, kShape> + 4) * 4;
  static constexpr int kSplitBytes = kShape.batch_rows() * kRowBytes;
  static constexpr int kBufferBytes = kShape.k_splits * kSplitBytes;
  static constexpr int kBytes = kShape.whole_sums() || kShape.sends_sums() ? 0 : 2 * kBufferBytes;
  SharedAddress buffer;

  // The warp's sums of 8 batch rows.
  __device__ __forceinline__ void store(int first_row, const float (&acc)[kShape.rows_per_lane][2]) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int row_warp = warp / kShape.k_splits, k_split = warp % kShape.k_splits;
#pragma unroll
    for (int r = 0; r < kShape.rows_per_lane; r += kSums)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const SharedAddress to = buffer + k_split * kSplitBytes + (first_row + 2 * t + e) * kRowBytes +
                                 unit_of_row<kShape>(r, row_warp, g) * kSums * 4;
        if constexpr (kSums == 4)
          store_shared128(to, Vec4{float_bits(acc[r][e]), float_bits(acc[r + 1][e]), float_bits(acc[r + 2][e]),
                                   float_bits(acc[r + 3][e])});
        else
          store_shared32(to, float_bits(acc[r][e]));
      }
  }

  // Adds those of one cell to its sums, in fixed order.
  __device__ __forceinline__ void add(int unit, int row, float (&sums)[kSums]) const {
#pragma unroll
    for (int k_split = 0; k_split < kShape.k_splits; ++k_split) {
      const SharedAddress from = buffer + k_split * kSplitBytes + row * kRowBytes + unit * kSums * 4;
      if constexpr (kSums == 4) {
        const Vec4 v = load_shared128(from);
#pragma unroll
        for (int q = 0; q < 4; ++q) sums[q] += bits_float(v.w[q]);
      } else {
        sums[0] += bits_float(load_shared32(from));
      }
    }
  }
};

}  // namespace fusedlstm::gpu
