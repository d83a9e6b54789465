// How the operand of the next step (h forward, d_gates backward) gets from the threads that compute it into the shared
// memory of every CTA that multiplies with it. The transports differ here and nowhere else.
//
// Level 2. Positions count the steps in order of running; operand s is published before it is awaited for product s.
// In shared memory an operand is [chunk][batch row][64 bytes], see arithmetic.cuh. An element is an operand already:
// rounded, and zero beyond the hidden size.
#pragma once
#include "arithmetic.cuh"

namespace fusedlstm::gpu {

// What all transports know of the tile of the batch that their CTAs work on.
struct OperandTile {
  SharedAddress operand;   // this CTA's copy, buffer 0
  SharedAddress barriers;  // 16 bytes for mbarriers
  int batch_rows;          // of the tile that exist
  int pitch;               // elements of one batch row; a multiple of 16 bytes
  int ctas;                // that share the tile
  int steps;               // positions 0..steps-1 are published and awaited
  void* global;            // kGrid: scalar_t [steps][batch rows of all tiles][pitch], this tile's first row
  int64_t global_stride;   // kGrid: elements between positions
};

template <class Math, KernelShape kShape, Transport kTransport = kShape.transport>
struct Exchange;

template <class Math, KernelShape kShape>
struct ExchangeLayout {
  static constexpr int kElementBytes = sizeof(typename Math::scalar_t);
  static constexpr int kChunkElements = kChunkBytes / kElementBytes;
  static constexpr int kVectorElements = kVectorBytes / kElementBytes;
  static constexpr int kChunkStride = kShape.batch_rows() * kChunkBytes;
  static constexpr int kOperandBytes = kShape.chunks() * kChunkStride;

  // Bytes from the start of an operand to element k of batch row n.
  static __device__ __forceinline__ int offset(int k, int n) {
    return k / kChunkElements * kChunkStride + n * kChunkBytes + k % kChunkElements * kElementBytes;
  }
};

// LOCAL. One CTA: the operand goes into its one buffer, which all warps have read before the barrier between product
// and publication.
template <class Math, KernelShape kShape>
struct Exchange<Math, kShape, Transport::kLocal> : ExchangeLayout<Math, kShape> {
  using Layout = ExchangeLayout<Math, kShape>;
  static constexpr int kBuffers = 1;
  OperandTile tile;

  __device__ __forceinline__ void open() {}
  __device__ __forceinline__ void publish(int, int k, int n, int copy, Vec4 v) {
    if (copy == 0) store_shared128(tile.operand + Layout::offset(k, n), v);
  }
  __device__ __forceinline__ SharedAddress await(int) {
    block_sync();
    return tile.operand;
  }
  __device__ __forceinline__ void close() {}
};

// CLUSTER. Every CTA sends its part into all of them, itself included, by store_async; an mbarrier per buffer counts
// the bytes. Two buffers are enough: a CTA publishes operand s + 1 only after it received all of operand s, which every
// peer sent only after it had finished reading operand s - 1.
template <class Math, KernelShape kShape>
struct Exchange<Math, kShape, Transport::kCluster> : ExchangeLayout<Math, kShape> {
  using Layout = ExchangeLayout<Math, kShape>;
  static constexpr int kBuffers = 2;
  // Lanes with the same vector serve different peers.
  static constexpr int kCopies = 32 / (32 * Layout::kElementBytes / kVectorBytes);
  OperandTile tile;

  __device__ __forceinline__ int expected_bytes() const { return tile.batch_rows * tile.pitch * Layout::kElementBytes; }
  static __device__ __forceinline__ int barrier_offset(int s) { return s % 2 * 8; }

  __device__ __forceinline__ void open() {
    if (threadIdx.x == 0) {
      for (int i = 0; i < kBuffers; ++i) mbarrier_init(tile.barriers + 8 * i, 1);
      mbarrier_init_fence();
      for (int i = 0; i < kBuffers; ++i) mbarrier_arrive_expect(tile.barriers + 8 * i, expected_bytes());
    }
    cluster_sync();  // peers may send only to barriers that exist, into buffers that are cleared
  }
  __device__ __forceinline__ void publish(int s, int k, int n, int copy, Vec4 v) {
    const SharedAddress to = tile.operand + s % 2 * Layout::kOperandBytes + Layout::offset(k, n);
    for (int rank = copy; rank < tile.ctas; rank += kCopies)
      store_async128(map_cluster_address(to, rank), v, map_cluster_address(tile.barriers + barrier_offset(s), rank));
  }
  __device__ __forceinline__ SharedAddress await(int s) {
    const SharedAddress barrier = tile.barriers + barrier_offset(s);
    mbarrier_wait<Scope::kCluster>(barrier, s / 2 % 2);
    // Operand s + 2 cannot come before this CTA has published s + 1, which is after the next barrier of the CTA.
    if (threadIdx.x == 0 && s + 2 < tile.steps) mbarrier_arrive_expect(barrier, expected_bytes());
    return tile.operand + s % 2 * Layout::kOperandBytes;
  }
  __device__ __forceinline__ void close() { cluster_sync(); }  // none may exit while a peer sends to it
};

// GRID. Every position has memory of its own, filled with ones before the launch; a word of ones means "not written
// yet", so that the data is its own flag: no counter, no fence, no barrier between CTAs. Every word is checked by
// itself, because only words are atomic. Published words are never all ones: see `published`. Each warp fetches only
// the chunks that it multiplies with, into a part of shared memory that is its own.
template <class Math, KernelShape kShape>
struct Exchange<Math, kShape, Transport::kGrid> : ExchangeLayout<Math, kShape> {
  static_assert(kShape.k_splits == KernelShape::kWarps, "a warp must own its part of K");
  using Layout = ExchangeLayout<Math, kShape>;
  using scalar_t = typename Math::scalar_t;
  static constexpr int kBuffers = 1;
  static constexpr uint32_t kNotWritten = ~0u;
  OperandTile tile;

  __device__ __forceinline__ void open() {}

  __device__ __forceinline__ void publish(int s, int k, int n, int copy, Vec4 v) {
    if (copy == 0)
      store_relaxed128(static_cast<scalar_t*>(tile.global) + s * tile.global_stride + n * tile.pitch + k, v);
  }

  __device__ __forceinline__ SharedAddress await(int s) {
    constexpr int kChunks = kShape.chunks_per_warp;
    // As many loads in flight as registers allow: one round trip to L2 costs more than all of them.
    constexpr int kInFlight = kChunks < 8 ? kChunks : 8;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int first_k = warp * kChunks * Layout::kChunkElements + t * Layout::kVectorElements;
    const SharedAddress to = tile.operand + warp * kChunks * Layout::kChunkStride + g * kChunkBytes + t * kVectorBytes;
    const scalar_t* from = static_cast<const scalar_t*>(tile.global) + s * tile.global_stride + first_k;
    warp_sync();  // the product before this one has read what is overwritten now
#pragma unroll
    for (int n = 0; n < kShape.batch_rows(); n += 8)
#pragma unroll
      for (int c = 0; c < kChunks; c += kInFlight) {
        Vec4 v[kInFlight];
        const bool row_exists = n + g < tile.batch_rows;
        bool again;
        do {
          bool missing = false;
#pragma unroll
          for (int i = 0; i < kInFlight; ++i) {
            v[i] = Vec4{};
            const int k = (c + i) * Layout::kChunkElements;
            if (row_exists && first_k + k < tile.pitch) v[i] = load_relaxed128(from + (n + g) * tile.pitch + k);
#pragma unroll
            for (int j = 0; j < 4; ++j) missing |= v[i].w[j] == kNotWritten;
          }
          again = warp_any(missing);
        } while (again);
#pragma unroll
        for (int i = 0; i < kInFlight; ++i)
          store_shared128(to + (c + i) * Layout::kChunkStride + n * kChunkBytes, v[i]);
      }
    warp_sync();
    return tile.operand;
  }
  __device__ __forceinline__ void close() {}
};

}  // namespace fusedlstm::gpu
