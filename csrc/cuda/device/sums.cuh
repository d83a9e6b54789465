// How the sums of a product reach the threads that own the cells, from the lanes that multiplied, where they are not
// whole there: through shared memory of the CTA, as here, or through that of a peer (transport_cluster.cuh).
#pragma once
#include "transport.cuh"

namespace fusedlstm::cuda {

// The add_products of a transport whose sums go through shared memory: what the lane has of 8 batch rows by
// sums.store(s, first row, acc), of all rows by sums.send(s), and, after sums.await(s), to cell e by sums.add(s, e, its
// sums).
template <KernelShape kShape, class Owned, class Sums, class Product, class Await, class Sum, class Meanwhile>
__device__ __forceinline__ void add_through_memory(const Sums& sums, const Product& product, int s, Await await,
                                                   Sum sum, Meanwhile meanwhile) {
  if (has_operand<kShape>(s)) {
    const SharedAddress operand = await();
#pragma unroll 1  // interleaving the tiles would need registers that the weights have
    for (int n = 0; n < kShape.batch_rows(); n += 8) {
      float acc[kShape.rows_per_lane][2] = {};
      product.multiply(operand + n * kChunkBytes, kChunkStride<kShape>, acc);
      sums.store(s, n, acc);
    }
    sums.send(s);
  }
  meanwhile();
  if (!has_operand<kShape>(s)) return;
  sums.await(s);
  const Owned owned;
#pragma unroll
  for (int e = 0; e < Owned::kCount; ++e)
    if (owned.exists(e)) sums.add(s, e, sum(e));
}

// The sums of a cell that has several, as they lie in shared memory: a vector. The lane's of row r and batch row e.
template <int kSums, int kRows>
__device__ __forceinline__ Vec4 vector_of_sums(const float (&acc)[kRows][2], int r, int e) {
  Vec4 v{};
#pragma unroll
  for (int q = 0; q < kSums; ++q) v.w[q] = float_bits(acc[r + q][e]);
  return v;
}
template <int kSums>
__device__ __forceinline__ void add_vector(SharedAddress from, float (&sums)[kSums]) {
  const Vec4 v = load_shared128(from);
#pragma unroll
  for (int q = 0; q < kSums; ++q) sums[q] += bits_float(v.w[q]);
}

// Sums of warps that share K, through shared memory of the CTA.
//
// One barrier of the CTA per position separates the writers of partial sums from their readers. There are two buffers,
// so that nobody overwrites sums still being read: whoever writes those of position s + 2 has passed the barrier of s +
// 1, which their reader reached after reading.
//
// float [2 buffers][k_splits][batch row][unit][sum], the sums of a unit padded to a vector where it has several, and 4
// floats of padding a batch row against bank conflicts between the rows 2t of a warp.
template <class Math, KernelShape kShape, class Owned>
struct PartialSums {
  static constexpr bool kStartsFromCells = false;
  static constexpr int kSums = kShape.sums(), kUnitBytes = sums_of_unit(kShape) * 4;
  static_assert(kSums == 1 || kUnitBytes == sizeof(Vec4));
  static constexpr int kRowBytes = kUnitBytes * kUnitsOf<Math, kShape> + 16;
  static constexpr int kSplitBytes = kShape.batch_rows() * kRowBytes;
  static constexpr int kBufferBytes = kShape.k_splits * kSplitBytes;
  static constexpr int kBytes = 2 * kBufferBytes;
  SharedAddress stored;  // the lane's first sum of batch rows 0..7, in buffer 0
  SharedAddress taken;   // the first sum of the thread's cell 0, there too

  // From the first of them to that of position s.
  static __device__ __forceinline__ int buffer(int s) { return s % 2 * kBufferBytes; }

  explicit __device__ __forceinline__ PartialSums(const OperandTile& tile) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int row_warp = warp / kShape.k_splits, k_split = warp % kShape.k_splits;
    const Owned owned;
    stored = in_register(tile.sums + k_split * kSplitBytes + 2 * t * kRowBytes +
                         unit_of_row<kShape>(0, row_warp, g) * kUnitBytes);
    taken = in_register(tile.sums + owned.row(0) * kRowBytes + owned.unit(0) * kUnitBytes);
  }

  template <class Product, class Await, class Sum, class Meanwhile>
  __device__ __forceinline__ void add_products(const Product& product, int s, Await await, Sum sum,
                                               Meanwhile meanwhile) const {
    add_through_memory<kShape, Owned>(*this, product, s, await, sum, meanwhile);
  }
  // The warp's sums of 8 batch rows.
  __device__ __forceinline__ void store(int s, int first_row, const float (&acc)[kShape.rows_per_lane][2]) const {
#pragma unroll
    for (int r = 0; r < kShape.rows_per_lane; r += kSums)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const SharedAddress to =
            stored + buffer(s) + (first_row + e) * kRowBytes + unit_of_row<kShape>(r, 0, 0) * kUnitBytes;
        if constexpr (kSums == 1)
          store_shared32(to, float_bits(acc[r][e]));
        else
          store_shared128(to, vector_of_sums<kSums>(acc, r, e));
      }
  }

  __device__ __forceinline__ void send(int) const {}
  __device__ __forceinline__ void await(int) const { block_sync(); }
  // Adds those of cell e to its sums, in fixed order.
  __device__ __forceinline__ void add(int s, int e, float (&sums)[kSums]) const {
#pragma unroll
    for (int k_split = 0; k_split < kShape.k_splits; ++k_split) {
      const SharedAddress from = taken + buffer(s) + k_split * kSplitBytes + Owned::rows_on(e) * kRowBytes;
      if constexpr (kSums > 1)
        add_vector(from, sums);
      else
        sums[0] += bits_float(load_shared32(from));
    }
  }
};

}  // namespace fusedlstm::cuda
