// GRID: CTAs on up to all SMs share W_hh, and the operands go through global memory.
#pragma once
#include <algorithm>

#include "sums.cuh"
#include "transport.cuh"

namespace fusedlstm::cuda {

// Every position has memory of its own, filled with ones before the launch; a word of ones means "not written
// yet", so that the data is its own flag: no counter, no fence, no barrier between CTAs. Every word is checked by
// itself, because only words are atomic. Published words are never all ones. Each warp fetches only
// the chunks that it multiplies with, into a part of shared memory that is its own.
template <class Math, KernelShape kShape>
struct GridTransport : VectorTransport<Math, kShape> {
  static_assert(kShape.k_splits == KernelShape::kWarps, "a warp must own its part of K");
  using Layout = VectorTransport<Math, kShape>;
  using Layout::tile;
  using Sums = PartialSums<Math, kShape, typename Layout::Owned>;
  using scalar_t = typename Math::scalar_t;
  static constexpr int kBuffers = 1, kClearedBytes = 0;  // await writes all of the operand
  static constexpr uint32_t kNotWritten = ~0u;
  // The vectors of a lane: vector t of every chunk of batch rows g, g + 8, ... As many loads in flight as registers
  // allow, since one round trip to L2 costs more than all of them.
  static constexpr int kChunks = kShape.chunks_per_warp, kLoads = kChunks * kShape.batch_tiles;
  static constexpr int kRounds = grid_rounds(kShape), kInFlight = (kLoads + kRounds - 1) / kRounds;
  const scalar_t* fetched;  // the lane's first vector of operand 0
  scalar_t* published;      // the vector that the lane sends of its cell 0, in the operand to be published next
  SharedAddress arrival;    // of the lane's first vector
  int64_t stride;           // elements of memory between positions

  static cudaError_t prepare_launch(LaunchConfig& config, const Plan& plan, const RowStates& rows, void* memory,
                                    cudaStream_t stream) {
    config.cooperative = true;
    return cudaMemsetAsync(memory, 0xFF, exchange_bytes(plan, rows), stream);
  }
  static __device__ __forceinline__ int rank(int ctas) { return blockIdx.x % ctas; }
  __device__ __forceinline__ void open() {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    auto* global = static_cast<scalar_t*>(tile.memory) + tile.memory_row * this->pitch();
    stride = int64_t{tile.memory_rows} * this->pitch();
    fetched = in_register(static_cast<const scalar_t*>(global) + g * this->pitch() + first_k());
    published = in_register(global + this->row_of(0) * this->pitch() + this->k_of(0));
    arrival = in_register(tile.operand + warp * kChunks * kChunkStride<kShape> + g * kChunkBytes + t * kVectorBytes);
  }
  __device__ __forceinline__ void publish(int, const typename Layout::Elements& x) {
    Layout::gather(
        x, [](auto bits) { return never_all_ones(bits); },
        [&](int e, int q, Vec4 v) {
          if (this->exists(e) && threadIdx.x % 32 < Layout::kVectors)
            store_relaxed128(published + e * Layout::Owned::kRowsApart * this->pitch() + q * tile.gate_pitch, v);
        });
    published += stride;
  }

  __device__ __forceinline__ SharedAddress await(int s) {
    const int g = threadIdx.x % 32 / 4;
    const scalar_t* from = fetched + s * stride;
    warp_sync();  // the product before this one has read what is overwritten now
#pragma unroll
    for (int first = 0; first < kLoads; first += kInFlight) {
      Vec4 v[kInFlight];
      const auto look = [&] {
        uint32_t most = 0;
#pragma unroll
        for (int i = 0; i < kInFlight && first + i < kLoads; ++i) {
          const int n = (first + i) / kChunks * 8, k = (first + i) % kChunks * Layout::kChunkElements;
          v[i] = Vec4{};
          if (n + g < tile.batch_rows && first_k() + k < this->pitch())
            v[i] = load_relaxed128(from + n * this->pitch() + k);
        }
#pragma unroll
        for (int i = 0; i < kInFlight && first + i < kLoads; ++i)
          most = std::max(most, std::max(std::max(v[i].w[0], v[i].w[1]), std::max(v[i].w[2], v[i].w[3])));
        return !warp_any(most == kNotWritten);
      };
      Patience patience;
      while (!look())
        if (patience.is_over()) Patience::give_up(__PRETTY_FUNCTION__);
#pragma unroll
      for (int i = 0; i < kInFlight && first + i < kLoads; ++i)
        store_shared128(
            arrival + (first + i) % kChunks * kChunkStride<kShape> + (first + i) / kChunks * 8 * kChunkBytes, v[i]);
    }
    warp_sync();
    return tile.operand;
  }
  __device__ __forceinline__ void close() {}

 private:
  // Never kNotWritten in a word. Only a NaN that came in from outside can have all ones; conversions to 16 bits make
  // NaNs canonical.
  static __device__ __forceinline__ uint16_t never_all_ones(uint16_t bits) { return bits; }
  static __device__ __forceinline__ uint32_t never_all_ones(uint32_t bits) {
    return bits == kNotWritten ? 0x7FFFFFFFu : bits;
  }
  static __device__ __forceinline__ int first_k() {
    return static_cast<int>(threadIdx.x / 32) * kChunks * Layout::kChunkElements +
           static_cast<int>(threadIdx.x % 4) * Layout::kVectorElements;
  }
};

}  // namespace fusedlstm::cuda
