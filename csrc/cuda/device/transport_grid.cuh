// GRID: CTAs on up to all SMs share W_hh, and the operands go through global memory.
#pragma once
#include <algorithm>
#include <type_traits>

#include "sums.cuh"
#include "transport.cuh"

namespace fusedlstm::cuda {

// What GRID and MESH have in common. Part: the WeightPart, whose columns are those of the operand that a CTA fetches.
//
// A word of ones means "not written yet", so that the data is its own flag: no counter, no barrier between CTAs. Every
// word is checked by itself, because only words are atomic. Published words are never all ones.
//
// Positions take turns in the slots of a ring, which is filled with ones before the launch. None is overwritten before
// all have read it, and nobody takes an old operand for a new one:
//   * Who publishes operand s has received all of s - 1 (in MESH, its cluster has), which every CTA sent only after it
//     had read s - 2 (likewise). So it fills its part of the slot of s - 2 with ones then. The next to write there is
//     the same thread: all see operand, ones and next operand in this order.
//   * All threads have a fence every kPositionsPerFence. The writer's that follows its ones for operand s comes at
//     position s + 1 + kPositionsPerFence at the latest. Of what it publishes after that, the reader has received some
//     when it has its own next fence, at s + 1 + 2 * kPositionsPerFence at the latest and before it asks for the
//     operand of that position. From there on it sees the ones, or what came after them.
// A fence stands where a CTA has published, and nothing can have arrived for it yet: there it costs the least.
inline constexpr int kPositionsPerFence = 8;
static_assert(kRingPositions > 2 * kPositionsPerFence);

template <class Math, KernelShape kShape, class Part>
struct OperandInMemory : VectorTransport<Math, kShape> {
  using Layout = VectorTransport<Math, kShape>;
  using Layout::tile;
  using WeightPart = Part;
  using scalar_t = typename Math::scalar_t;
  static constexpr int kBuffers = 1, kClearedBytes = 0;  // await writes all of the operand
  static constexpr uint32_t kNotWritten = ~0u;
  static constexpr Vec4 kNothing{{kNotWritten, kNotWritten, kNotWritten, kNotWritten}};
  // Each warp fetches as many chunks: where each has a part of K, those that it multiplies with itself.
  static constexpr bool kFetchesForItself = kShape.k_splits == KernelShape::kWarps;
  // The vectors of a lane: vector t of every chunk of batch rows g, g + 8, ... As many loads in flight as registers
  // allow, since one round trip to L2 costs more than all of them.
  static constexpr int kChunks = kShape.chunks() / KernelShape::kWarps, kLoads = kChunks * kShape.batch_tiles;
  static constexpr int kRounds = grid_rounds(kShape), kInFlight = (kLoads + kRounds - 1) / kRounds;
  // As the compiler does not see by itself: it keeps an address for every vector, in case the others are not there.
  static constexpr bool kRoundsAreWhole = kLoads % kInFlight == 0;
  // Rounds that overlap need the registers of both. From compute capability 10.0 on ptxas keeps more addresses in some,
  // and spills beside the largest weights.
  static constexpr bool kRoundsOverlap = !Layout::kFewRegistersLeft && (kArch < 1000 || kShape.weight_words() < 128);
  const scalar_t* fetched;  // the lane's first vector in slot 0
  scalar_t* published;      // the vector that the lane sends of its cell 0, in slot 0
  SharedAddress arrival;    // of the lane's first vector
  uint32_t stride;          // bytes of memory between slots

  static cudaError_t prepare_launch(LaunchConfig& config, const Plan& plan, const RowStates& rows, void* memory,
                                    cudaStream_t stream) {
    config.cooperative = true;
    return cudaMemsetAsync(memory, 0xFF, exchange_bytes(plan, rows), stream);
  }
  static __device__ __forceinline__ int rank(int ctas) { return blockIdx.x % ctas; }
  __device__ __forceinline__ void open() {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    auto* global = static_cast<scalar_t*>(tile.memory) + tile.memory_row * this->pitch();
    stride = tile.memory_rows * this->pitch() * Layout::kElementBytes;
    fetched = in_register(static_cast<const scalar_t*>(global) + g * this->pitch() + part().column(first_k()));
    published = in_register(global + this->row_of(0) * this->pitch() + this->k_of(0));
    arrival = in_register(tile.operand + warp * kChunks * kChunkStride<kShape> + g * kChunkBytes + t * kVectorBytes);
  }
  __device__ __forceinline__ void publish(int s, const typename Layout::Elements& x) {
    scalar_t *to = in_slot(published, s), *read_by_all = in_slot(published, s + kRingPositions - 2);
    const bool is_used_again = s + kRingPositions - 2 < tile.steps;
    Layout::gather(
        x, [](auto bits) { return never_all_ones(bits); },
        [&](int e, int q, Vec4 v) {
          if (!this->exists(e) || threadIdx.x % 32 >= Layout::kVectors) return;
          const uint32_t place = e * Layout::Owned::kRowsApart * this->pitch() + q * tile.gate_pitch;
          store_relaxed128(to + place, v);
          if (is_used_again) store_relaxed128(read_by_all + place, kNothing);
        });
  }

  __device__ __forceinline__ SharedAddress await(int s) {
    if (s % kPositionsPerFence == kPositionsPerFence - 1) gpu_fence();
    const int g = threadIdx.x % 32 / 4;
    const scalar_t* from = in_slot(fetched, s);
    meet_readers();  // the product before this one has read what is overwritten now
    const uint32_t rows_apart = 8 * this->pitch();
#pragma unroll(kRoundsOverlap ? kRounds : 1)
    for (int first = 0; first < kLoads; first += kInFlight) {
      Vec4 v[kInFlight] = {};
      const auto row = [&](int i) { return (first + i) / kChunks * 8; };
      const auto k = [&](int i) { return (first + i) % kChunks * Layout::kChunkElements; };
      const scalar_t* rows[kInFlight];  // that the vectors are of
#pragma unroll
      for (int i = 0; i < kInFlight && first + i < kLoads; ++i) {
        if (i > 0 && (first + i) % kChunks == 0) from = in_register(from + rows_apart);
        rows[i] = from;
      }
      if ((first + kInFlight) % kChunks == 0) from += rows_apart;
      // Whether any vector was to be loaded.
      const auto load = [&](auto is_wanted) {
        bool any = false;
#pragma unroll
        for (int i = 0; i < kInFlight && (kRoundsAreWhole || first + i < kLoads); ++i) {
          const bool wanted = is_wanted(i);
          load_relaxed128_if(wanted, rows[i] + k(i), v[i]);
          any |= wanted;
        }
        return any;
      };
      load([&](int i) { return row(i) + g < tile.batch_rows && first_k() + k(i) < part().columns(); });
      // Only what is missing, since all CTAs poll, and what they ask for shares the way from L2.
      const auto is_missing = [&](int i) {
        return std::max(std::max(v[i].w[0], v[i].w[1]), std::max(v[i].w[2], v[i].w[3])) == kNotWritten;
      };
      Patience patience;
      while (warp_any(load(is_missing)))
        if (patience.is_over()) Patience::give_up(__PRETTY_FUNCTION__);
#pragma unroll
      for (int i = 0; i < kInFlight && first + i < kLoads; ++i)
        store_shared128(
            arrival + (first + i) % kChunks * kChunkStride<kShape> + (first + i) / kChunks * 8 * kChunkBytes, v[i]);
    }
    meet_readers();
    return tile.operand;
  }
  __device__ __forceinline__ void close() {}

 private:
  // From a place in slot 0 to that in the slot of position s.
  template <class T>
  __device__ __forceinline__ T* in_slot(T* place, int s) const {
    using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
    const uint64_t bytes = uint64_t{static_cast<uint32_t>(s) % kRingPositions} * stride;
    return reinterpret_cast<T*>(reinterpret_cast<Byte*>(place) + bytes);
  }
  // Never kNotWritten in a word. Only a NaN that came in from outside can have all ones; conversions to 16 bits make
  // NaNs canonical.
  static __device__ __forceinline__ uint16_t never_all_ones(uint16_t bits) { return bits; }
  static __device__ __forceinline__ uint32_t never_all_ones(uint32_t bits) {
    return bits == kNotWritten ? 0x7FFFFFFFu : bits;
  }
  __device__ __forceinline__ Part part() const { return {tile.first_unit, tile.gate_pitch}; }
  // All that multiply with what the warp has fetched.
  static __device__ __forceinline__ void meet_readers() {
    if constexpr (kFetchesForItself)
      warp_sync();
    else
      block_sync();
  }
  // Of the columns that the CTA has, the first that the lane fetches.
  static __device__ __forceinline__ int first_k() {
    return static_cast<int>(threadIdx.x / 32) * kChunks * Layout::kChunkElements +
           static_cast<int>(threadIdx.x % 4) * Layout::kVectorElements;
  }
};

template <class Math, KernelShape kShape>
struct GridTransport : OperandInMemory<Math, kShape, typename OperandOfAll<Math, kShape>::WeightPart> {
  using Sums = PartialSums<Math, kShape, SpacedCells<Math, kShape>>;
};

}  // namespace fusedlstm::cuda
