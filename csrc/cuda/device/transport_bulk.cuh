// BULK: CLUSTER, but what a CTA has for a peer is gathered in its own shared memory and goes there by one bulk copy,
// where CLUSTER has a store for each vector or pair. Its price is a barrier of the CTA before the copies.
//
// What is copied may be written again two positions later: a peer sends what is of position s + 1 only after it has
// received all of s, so that who has received s + 1 from all knows that its own copies of s have been read.
#pragma once
#include <type_traits>

#include "transport_cluster.cuh"

namespace fusedlstm::cuda {

// All threads of the CTA call it when they have written what is to be sent: send(peer) for each CTA, by one thread.
template <class Send>
__device__ __forceinline__ void send_in_bulk(int ctas, Send send) {
  bulk_copy_fence();
  block_sync();
  if (threadIdx.x % 32 != 0) return;
#pragma unroll
  for (int i = 0; i < kMaxClusterSize / KernelShape::kWarps; ++i)
    if (const int peer = i * KernelShape::kWarps + threadIdx.x / 32; peer < ctas) send(peer);
}

// Forward. A CTA writes its part of the operand into its own copy, from where it goes to the same place of the others.
template <class Math, KernelShape kShape>
struct OperandsInBulk : OperandOfAll<Math, kShape>, InCluster {
  using Layout = OperandOfAll<Math, kShape>;
  using Layout::tile;
  using Owned = typename Layout::Owned;
  using Sums = PartialSums<Math, kShape, Owned>;
  static constexpr int kChunks = Layout::kUnits / Layout::kChunkElements;  // of the CTA's part; a copy each
  static_assert(Layout::kUnits % Layout::kChunkElements == 0 && Layout::kOperands == 1, "parts are whole chunks");
  static_assert(Owned::kAllExist, "every thread has cells, and so comes to the barrier");
  SharedAddress mine;  // where the thread's first cell belongs in buffer 0

  // The batch rows that exist stand together at the start of a chunk.
  __device__ __forceinline__ int chunk_bytes() const { return tile.batch_rows * kChunkBytes; }
  __device__ __forceinline__ int expected_bytes() const { return (tile.ctas - 1) * kChunks * chunk_bytes(); }

  __device__ __forceinline__ void open() {
    const Owned owned;
    mine = in_register(tile.operand + Layout::offset(tile.first_unit + owned.unit(0), owned.row(0)));
    bulk_copy_fence();  // peers copy into what the thread has cleared
    ArrivalBarriers::open(tile.barriers, expected_bytes());
  }
  __device__ __forceinline__ void publish(int s, const typename Layout::Elements& x) {
    const int buffer = in_register(s % 2 * Layout::kOperandBytes);
#pragma unroll
    for (int e = 0; e < Owned::kCount; ++e)
      Layout::store_element(mine + buffer + Owned::rows_on(e) * kChunkBytes, Math::operand(x[e][0]));
    send_in_bulk(tile.ctas, [&](int peer) {
      if (peer == tile.first_unit / Layout::kUnits) return;
      const SharedAddress part = tile.operand + buffer + Layout::offset(tile.first_unit, 0);
      const SharedAddress barrier = map_cluster_address(tile.barriers + ArrivalBarriers::offset(s), peer);
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        const SharedAddress chunk = part + i * kChunkStride<kShape>;
        bulk_copy(map_cluster_address(chunk, peer), chunk, chunk_bytes(), barrier);
      }
    });
  }
  __device__ __forceinline__ SharedAddress await(int s) {
    ArrivalBarriers::await(tile.barriers, s, tile.steps, expected_bytes(), __PRETTY_FUNCTION__);
    return tile.operand + s % 2 * Layout::kOperandBytes;
  }
};

// By one copy of all sums that a CTA has for a peer, itself included.
template <class Math, KernelShape kShape>
struct SumsByCopies : SumsLayout<Math, kShape, PairedCells<Math, kShape>, true> {
  using Layout = SumsLayout<Math, kShape, PairedCells<Math, kShape>, true>;
  using Layout::Layout, Layout::tile, Layout::kUnits, Layout::kSourceBytes, Layout::kBufferBytes, Layout::place;
  static constexpr int kStageBytes = Layout::kBytes;
  static_assert(kShape.rows() == Layout::kSources * kUnits, "every sum has a place");

  // Of one copy: the batch rows that exist stand together at its start.
  static __device__ __forceinline__ int copied_bytes(const OperandTile& tile) {
    return (tile.batch_rows + 1) / 2 * kUnits * 8;
  }
  static __device__ __forceinline__ int expected_bytes(const OperandTile& tile) {
    return tile.ctas * copied_bytes(tile);
  }
  // Where they are gathered.
  __device__ __forceinline__ SharedAddress stage(int s) const { return tile.stage + s % 2 * kBufferBytes; }
  // Gathers the lane's sums of 8 batch rows.
  __device__ __forceinline__ void store(int s, int first_row, const float (&acc)[kShape.rows_per_lane][2]) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, row = first_row + lane % 4 * 2;
    const int first_unit = unit_of_row<kShape>(0, warp, 0);
#pragma unroll
    for (int r = 0; r < kShape.rows_per_lane; ++r) {
      const int unit = first_unit + r * 8;  // the first of the group
      store_shared64(stage(s) + unit / kUnits * kSourceBytes + place(unit % kUnits + g, row), float_bits(acc[r][0]),
                     float_bits(acc[r][1]));
    }
  }
  __device__ __forceinline__ void send(int s) const {
    const SharedAddress to = tile.sums + s % 2 * kBufferBytes + tile.first_unit / kUnits * kSourceBytes;
    send_in_bulk(tile.ctas, [&](int peer) {
      bulk_copy(map_cluster_address(to, peer), stage(s) + peer * kSourceBytes, copied_bytes(tile),
                map_cluster_address(tile.barriers + ArrivalBarriers::offset(s), peer));
    });
  }
};

// Backward.
template <class Math, KernelShape kShape>
struct SumsInBulk : SumsInCluster<Math, kShape, SumsByCopies<Math, kShape>> {
  __device__ __forceinline__ void open() {
    bulk_copy_fence();  // peers copy into what the thread has cleared
    SumsInCluster<Math, kShape, SumsByCopies<Math, kShape>>::open();
  }
};

template <class Math, KernelShape kShape>
using BulkTransport = std::conditional_t<sends_sums(kShape), SumsInBulk<Math, kShape>, OperandsInBulk<Math, kShape>>;

}  // namespace fusedlstm::cuda
