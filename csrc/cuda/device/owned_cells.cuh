// Which cells (a hidden unit of a batch row) a thread of a resident kernel owns. Its transport chooses.
//
// Lane (g = lane / 4, t = lane % 4) has the sums of batch rows 2t and 2t + 1, for the weight rows g of its
// groups of 8. Where these are whole, it owns those cells itself; otherwise they are brought to their owners.
#pragma once
#include "arithmetic.cuh"
#include "cuda/host/transport_shape.h"

namespace fusedlstm::cuda {

inline constexpr int kThreads = KernelShape::kWarps * 32;

// Row r of the lane's group g: the unit of the CTA that it belongs to.
template <KernelShape kShape>
__device__ __forceinline__ int unit_of_row(int r, int row_warp, int g) {
  return (row_warp * (kShape.rows_per_lane / kShape.sums()) + r / kShape.sums()) * 8 + g;
}

template <class Math, KernelShape kShape>
inline constexpr int kUnitsOf = transport_shape(kShape, Math::kArithmetic).units;

// Those that the lane has the sums of.
template <class Math, KernelShape kShape>
struct MultipliedCells {
  static constexpr int kCount = cells_per_thread(kShape, kUnitsOf<Math, kShape>), kUnitsOwned = kCount / 2;
  static_assert(kUnitsOwned == kShape.rows_per_lane / kShape.sums());

  // Of cell e: its unit among those owned, and its batch row after that of the unit's first cell.
  static constexpr int unit_index(int e) { return e / 2; }
  static constexpr int rows_on(int e) { return e % 2; }

  __device__ __forceinline__ int unit(int e) const {
    return unit_of_row<kShape>(e / 2 * kShape.sums(), threadIdx.x / 32, threadIdx.x % 32 / 4);
  }
  __device__ __forceinline__ int row(int e) const { return threadIdx.x % 4 * 2 + e % 2; }
  __device__ __forceinline__ bool exists(int) const { return true; }
  static __device__ __forceinline__ bool any_in_warp() { return true; }
};

// Evenly spaced, as then are all their indices. Neighbouring threads have neighbouring units, so that they reach
// neighbouring memory. Where sums come in pairs of batch rows, kAdjacentRows = 2 of them share a unit.
template <class Math, KernelShape kShape, int kAdjacentRows = 1>
struct SpacedCells {
  static constexpr int kUnits = kUnitsOf<Math, kShape>, kUnitsOwned = 1;
  static constexpr int kCount = cells_per_thread(kShape, kUnits);
  static_assert(kThreads % (kUnits * kAdjacentRows) == 0, "a thread has one unit");
  static constexpr int kRowsApart = kThreads / kUnits;
  static constexpr bool kAllExist = kShape.batch_rows() % kRowsApart == 0;

  static constexpr int unit_index(int) { return 0; }
  static constexpr int rows_on(int e) { return e * kRowsApart; }

  __device__ __forceinline__ int unit(int) const { return threadIdx.x / kAdjacentRows % kUnits; }
  __device__ __forceinline__ int row(int e) const { return first_row(threadIdx.x) + e * kRowsApart; }
  // Threads beyond the last cell of a small tile own none.
  __device__ __forceinline__ bool exists(int e) const { return kAllExist || row(e) < kShape.batch_rows(); }
  // The same for all threads of a warp: whether any of them owns one.
  static __device__ __forceinline__ bool any_in_warp() {
    return kAllExist || first_row(threadIdx.x / 32 * 32) < kShape.batch_rows();
  }

 private:
  static __device__ __forceinline__ int first_row(int thread) {
    return thread / (kUnits * kAdjacentRows) * kAdjacentRows + thread % kAdjacentRows;
  }
};

}  // namespace fusedlstm::cuda
