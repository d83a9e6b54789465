// How the operand of the next step (h forward, d_gates backward) gets from the threads that compute it into the shared
// memory of every CTA that multiplies with it, and the sums of the product to the threads that need them. The
// transports differ here and nowhere else.
//
// Positions count the steps in order of running; operand s is published before it is awaited for product s.
// In shared memory an operand is [chunk][batch row][64 bytes], see arithmetic.cuh. An element is an operand already:
// rounded, and zero beyond the hidden size.
#pragma once
#include <algorithm>
#include <type_traits>

#include "owned_cells.cuh"

namespace fusedlstm::cuda {

// What all transports know of the tile of the batch that their CTAs work on.
struct OperandTile {
  SharedAddress operand;   // this CTA's copy, buffer 0
  SharedAddress barriers;  // 16 bytes for mbarriers
  SharedAddress sums;      // kSumsBytes of the exchange
  SharedAddress stage;     // kStageBytes of the exchange
  int hidden_size;
  int first_unit;         // of this CTA
  int batch_rows;         // of the tile that exist
  int gate_pitch;         // elements of K that belong to one operand of all units; a multiple of 16 bytes
  int ctas;               // that share the tile
  int steps;              // positions 0..steps-1 are published and awaited
  void* global;           // kGrid: scalar_t [steps][batch rows of all tiles][pitch], this tile's first row
  int64_t global_stride;  // kGrid: elements between positions
};

template <class Math, KernelShape kShape>
struct ExchangeLayout {
  using scalar_t = typename Math::scalar_t;
  static constexpr int kElementBytes = sizeof(scalar_t);
  static constexpr int kChunkElements = kChunkBytes / kElementBytes;
  static constexpr int kVectorElements = kVectorBytes / kElementBytes;
  static constexpr int kChunkStride = kShape.batch_rows() * kChunkBytes;
  static constexpr int kOperandBytes = kShape.chunks() * kChunkStride;
  static constexpr int kOperands = kShape.operands();
  static constexpr bool kSwizzled = has_whole_sums(kShape) && Math::kTensorCores;
  static constexpr int kUnits = kUnitsOf<Math, kShape>;
  static constexpr bool kOwnOperands = kShape.transport == Transport::kLocal || sends_sums(kShape);
  static constexpr int kBuffers = kShape.transport == Transport::kGrid ? 1 : 2;
  static constexpr int kStageBytes = 0, kSumsBytes = 0;
  using Owned = OwnedCells<Math, kShape>;
  // What a thread publishes at a position.
  using Elements = scalar_t[Owned::kCount][kOperands];
  OperandTile tile;

  // Elements of K from one operand of a unit to the next.
  __device__ __forceinline__ int gate_stride() const { return kOwnOperands ? kUnits : tile.gate_pitch; }
  __device__ __forceinline__ int pitch() const { return kOperands * gate_stride(); }
  // Bytes from the start of an operand to element k of batch row n.
  static __device__ __forceinline__ int offset(int k, int n) {
    return k / kChunkElements * kChunkStride + operand_offset<kSwizzled>(n, k % kChunkElements / kVectorElements) +
           k % kVectorElements * kElementBytes;
  }
  static __device__ __forceinline__ void store_element(SharedAddress to, uint16_t bits) { store_shared16(to, bits); }
  static __device__ __forceinline__ void store_element(SharedAddress to, uint32_t bits) { store_shared32(to, bits); }
};

// LOCAL. One CTA: its threads write into the operand itself. It has two buffers, so that one may still be read while
// the next is written: whoever writes operand s + 1 has passed the barrier before product s, after all of product
// s - 1.
template <class Math, KernelShape kShape>
struct LocalExchange : ExchangeLayout<Math, kShape> {
  using Layout = ExchangeLayout<Math, kShape>;
  using Layout::tile;
  SharedAddress first[Layout::Owned::kUnitsOwned];  // operand of the first cell of each unit, in buffer 0

  __device__ __forceinline__ void open() {
    const typename Layout::Owned owned;
#pragma unroll
    for (int e = 0; e < Layout::Owned::kCount; ++e)
      if (Layout::Owned::rows_on(e) == 0)
        first[Layout::Owned::unit_index(e)] = in_register(tile.operand + Layout::offset(owned.unit(e), owned.row(e)));
  }
  __device__ __forceinline__ void publish(int s, const typename Layout::Elements& x) {
    const typename Layout::Owned owned;
#pragma unroll
    for (int e = 0; e < Layout::Owned::kCount; ++e)
#pragma unroll
      for (int q = 0; q < Layout::kOperands; ++q)
        if (owned.exists(e))
          Layout::store_element(first[Layout::Owned::unit_index(e)] + Layout::Owned::rows_on(e) * kChunkBytes +
                                    s % 2 * Layout::kOperandBytes + Layout::offset(q * Layout::kUnits, 0),
                                Math::operand(x[e][q]));
  }
  __device__ __forceinline__ SharedAddress await(int s) {
    block_sync();
    return tile.operand + s % 2 * Layout::kOperandBytes;
  }
  __device__ __forceinline__ void close() {}
};

// Ends a wait for another CTA that has no end. The CTAs of a cluster or of a cooperative grid start together, so that
// no wait includes that for a free SM.
class Patience {
 public:
  // To be asked where a look has found nothing, and only there: whether that has gone on for 30 to 34 s.
  __device__ __forceinline__ bool is_over() {
    const uint32_t now = timer_high();
    since_ = since_ == 0 ? now : since_;
    return now - since_ >= kUnits;
  }
  // kernel: the name of its function, with the arithmetic and the shape.
  static __device__ __forceinline__ void give_up(const char* kernel) {
    cuda::give_up(
        "waited 30 s in vain for another CTA of the cluster or grid: has this process only a part of the GPU, by MPS "
        "or MIG? FUSEDLSTM_PLAN=stream waits for none. The CUDA context is lost",
        kernel);
  }

 private:
  static constexpr uint32_t kUnits = 8;  // of timer_high
  uint32_t since_ = 0;                   // the first time asked
};

// What CLUSTER sends into two buffers, those of even and of odd positions: an mbarrier each counts the bytes that have
// arrived by store_async. expected: bytes of a position.
struct ArrivalBarriers {
  // From the first of them to that of position s.
  static __device__ __forceinline__ int offset(int s) { return s % 2 * 8; }

  static __device__ __forceinline__ void open(SharedAddress barriers, int expected) {
    if (threadIdx.x == 0) {
      for (int s = 0; s < 2; ++s) mbarrier_init(barriers + offset(s), 1);
      mbarrier_init_fence();
      for (int s = 0; s < 2; ++s) mbarrier_arrive_expect(barriers + offset(s), expected);
    }
    cluster_sync();  // peers may send only to barriers that exist, into buffers that are cleared
  }
  // Nothing of position s + 2 may come before the next barrier of the CTA. kernel: as Patience has it.
  static __device__ __forceinline__ void await(SharedAddress barriers, int s, int steps, int expected,
                                               const char* kernel) {
    // A second way out of this loop would cost 20 instructions in every time step of some kernels. So where patience is
    // over it is left by the only one, too: by asking for the phase before, which is complete. If this one completes
    // just then, the same question is about the next one, which is not: hence the turns.
    const int parity = s / 2 % 2;
    Patience patience;
    bool is_late = false;
    while (!mbarrier_try_wait<Scope::kCluster>(barriers + offset(s), parity ^ is_late))
      is_late = !is_late && patience.is_over();
    if (is_late) Patience::give_up(kernel);
    if (threadIdx.x == 0 && s + 2 < steps) mbarrier_arrive_expect(barriers + offset(s), expected);
  }
};

// CLUSTER backward. Every CTA multiplies the operands of its own units and sends the sums, of all units, to the CTAs
// that own them; they add up what has come from all, in fixed order. Two buffers are enough: a peer sends sums s + 2
// only after it received all of s + 1, which this CTA sent only after it had read sums s.
//
// float [2 buffers][CTA that sent][batch row / 2][unit][2 batch rows]
template <class Math, KernelShape kShape>
struct SumExchange : LocalExchange<Math, kShape> {
  using Layout = LocalExchange<Math, kShape>;
  using Layout::kUnits;
  using Layout::tile;
  static constexpr int kPairs = kShape.batch_rows() / 2, kSources = transport_shape(kShape, Math::kArithmetic).sources;
  static_assert(kUnits % 8 == 0, "8 rows of a group have one owner");
  static constexpr int kSourceBytes = kPairs * kUnits * 8, kBufferBytes = kSources * kSourceBytes;
  static constexpr int kSumsBytes = 2 * kBufferBytes;

  static __device__ __forceinline__ int place(int unit, int row) { return (row / 2 * kUnits + unit) * 8; }

  __device__ __forceinline__ int expected_bytes() const {
    const int left = tile.hidden_size - tile.first_unit, units = left < kUnits ? left : kUnits;
    return tile.ctas * units * ((tile.batch_rows + 1) / 2) * 8;
  }
  __device__ __forceinline__ void open() {
    Layout::open();
    ArrivalBarriers::open(tile.barriers, expected_bytes());
  }
  // The lane's sums of 8 batch rows.
  __device__ __forceinline__ void send(int s, int first_row, const float (&acc)[kShape.rows_per_lane][2]) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, row = first_row + lane % 4 * 2;
    if (row >= tile.batch_rows) return;
    // After tile.barriers, of this CTA or a peer.
    const uint32_t mine = in_register(static_cast<uint32_t>(tile.sums - tile.barriers) + s % 2 * kBufferBytes +
                                      tile.first_unit / kUnits * kSourceBytes + place(g, row));
    const uint32_t barrier = in_register(ArrivalBarriers::offset(s));
    const int first_unit = unit_of_row<kShape>(0, warp, 0), units = tile.hidden_size - first_unit - g;
#pragma unroll
    for (int r = 0; r < kShape.rows_per_lane; ++r) {
      if (r * 8 >= units) continue;
      const int unit = first_unit + r * 8;  // the first of the group
      const SharedAddress peer = map_cluster_address(tile.barriers, unit / kUnits);
      store_async64(peer + mine + place(unit % kUnits, 0), float_bits(acc[r][0]), float_bits(acc[r][1]),
                    peer + barrier);
    }
  }
  __device__ __forceinline__ void await_sums(int s) const {
    ArrivalBarriers::await(tile.barriers, s, tile.steps, expected_bytes(), __PRETTY_FUNCTION__);
  }
  __device__ __forceinline__ void add(int s, int unit, int row, float (&sums)[1]) const {
    const SharedAddress from = tile.sums + s % 2 * kBufferBytes + place(unit, row) + row % 2 * 4;
    float odd = 0;  // two chains of additions take half the time of one
#pragma unroll
    for (int i = 0; i < kSources; ++i) (i % 2 ? odd : sums[0]) += bits_float(load_shared32(from + i * kSourceBytes));
    sums[0] += odd;
  }
  __device__ __forceinline__ void close() { cluster_sync(); }  // none may exit while a peer sends to it
};

// What CLUSTER and GRID have in common: elements travel in vectors of 16 bytes. The 32 elements of a warp, 32 units of
// one batch row or fewer of several, are 32 * kElementBytes / 16 of them: lane l sends number l % kVectors.
template <class Math, KernelShape kShape>
struct VectorExchange : ExchangeLayout<Math, kShape> {
  using Layout = ExchangeLayout<Math, kShape>;
  using Layout::tile;
  static constexpr int kVectors = 32 / Layout::kVectorElements;
  static constexpr int kElementsBytes = kThreads * Layout::kElementBytes;
  static constexpr int kStageBytes = Layout::Owned::kCount * Layout::kOperands * kElementsBytes;
  using Owned = typename Layout::Owned;

  // The thread that has the first element of the lane's vectors. They are of its unit and batch rows.
  static __device__ __forceinline__ unsigned sender() {
    return threadIdx.x / 32 * 32 + threadIdx.x % kVectors * Layout::kVectorElements;
  }
  // Where vector q of cell e belongs in the operand, if it does.
  __device__ __forceinline__ int k_of(int q) const {
    return q * tile.gate_pitch + tile.first_unit + static_cast<int>(sender() % Owned::kUnits);
  }
  static __device__ __forceinline__ int row_of(int e) {
    return static_cast<int>(sender() / Owned::kUnits) + e * Owned::kRowsApart;
  }
  __device__ __forceinline__ bool exists(int e) const {
    return row_of(e) < tile.batch_rows && k_of(0) < tile.gate_pitch;
  }
  // Calls send(e, q, v) with the lane's vectors. Nobody overwrites the stage before its readers are through: a barrier
  // of the CTA stands between two positions.
  template <class Send>
  __device__ __forceinline__ void gather(const typename Layout::Elements& x, Send send) const {
    const auto is_empty = [&](int e) {  // nothing of the warp exists
      const int first = static_cast<int>(threadIdx.x / 32 * 32 / Owned::kUnits);
      return !Owned::kAllExist && first + e * Owned::kRowsApart >= kShape.batch_rows();
    };
    const auto stage = [&](int e, int q) { return tile.stage + (e * Layout::kOperands + q) * kElementsBytes; };
#pragma unroll
    for (int e = 0; e < Owned::kCount; ++e)
#pragma unroll
      for (int q = 0; q < Layout::kOperands; ++q)
        if (!is_empty(e))
          Layout::store_element(stage(e, q) + threadIdx.x * Layout::kElementBytes,
                                never_all_ones(Math::operand(x[e][q])));
    warp_sync();
#pragma unroll
    for (int e = 0; e < Owned::kCount; ++e)
#pragma unroll
      for (int q = 0; q < Layout::kOperands; ++q)
        if (!is_empty(e)) send(e, q, load_shared128(stage(e, q) + sender() * Layout::kElementBytes));
  }

 private:
  // Never all ones in a word, which GRID takes for "not written yet". Only a NaN that came in from outside can have
  // them; conversions to 16 bits make NaNs canonical.
  static __device__ __forceinline__ uint16_t never_all_ones(uint16_t bits) { return bits; }
  static __device__ __forceinline__ uint32_t never_all_ones(uint32_t bits) {
    return kShape.transport == Transport::kGrid && bits == ~0u ? 0x7FFFFFFFu : bits;
  }
};

// CLUSTER forward. Every CTA sends its part into all of them, itself included, by store_async; an mbarrier per buffer
// counts the bytes. Two buffers are enough: a CTA publishes operand s + 1 only after it received all of operand s,
// which every peer sent only after it had finished reading operand s - 1.
template <class Math, KernelShape kShape>
struct ClusterExchange : VectorExchange<Math, kShape> {
  using Layout = VectorExchange<Math, kShape>;
  using Layout::tile;
  static constexpr int kCopies = 32 / Layout::kVectors;       // lanes with the same vector, which serve different peers
  static constexpr int kPeers = kMaxClusterSize / kCopies;    // of a lane, if that many exist
  uint32_t places[Layout::Owned::kCount][Layout::kOperands];  // of the lane's vectors in buffer 0, after tile.barriers

  __device__ __forceinline__ int expected_bytes() const {
    return tile.batch_rows * this->pitch() * Layout::kElementBytes;
  }
  __device__ __forceinline__ int rank(int i) const {
    return i * kCopies + static_cast<int>(threadIdx.x % 32 / Layout::kVectors);
  }

  __device__ __forceinline__ void open() {
#pragma unroll
    for (int e = 0; e < Layout::Owned::kCount; ++e)
#pragma unroll
      for (int q = 0; q < Layout::kOperands; ++q)
        places[e][q] = in_register(static_cast<uint32_t>(tile.operand - tile.barriers) +
                                   Layout::offset(this->k_of(q), this->row_of(e)));
    ArrivalBarriers::open(tile.barriers, expected_bytes());
  }
  __device__ __forceinline__ void publish(int s, const typename Layout::Elements& x) {
    const int buffer = in_register(s % 2 * Layout::kOperandBytes), barrier = in_register(ArrivalBarriers::offset(s));
    Layout::gather(x, [&](int e, int q, Vec4 v) {
#pragma unroll
      for (int i = 0; i < kPeers; ++i)
        if (this->exists(e) && rank(i) < tile.ctas) {
          const SharedAddress peer = map_cluster_address(tile.barriers, rank(i));
          store_async128(peer + places[e][q] + buffer, v, peer + barrier);
        }
    });
  }
  __device__ __forceinline__ SharedAddress await(int s) {
    ArrivalBarriers::await(tile.barriers, s, tile.steps, expected_bytes(), __PRETTY_FUNCTION__);
    return tile.operand + s % 2 * Layout::kOperandBytes;
  }
  __device__ __forceinline__ void close() { cluster_sync(); }  // none may exit while a peer sends to it
};

// GRID. Every position has memory of its own, filled with ones before the launch; a word of ones means "not written
// yet", so that the data is its own flag: no counter, no fence, no barrier between CTAs. Every word is checked by
// itself, because only words are atomic. Published words are never all ones. Each warp fetches only
// the chunks that it multiplies with, into a part of shared memory that is its own.
template <class Math, KernelShape kShape>
struct GridExchange : VectorExchange<Math, kShape> {
  static_assert(kShape.k_splits == KernelShape::kWarps, "a warp must own its part of K");
  using Layout = VectorExchange<Math, kShape>;
  using Layout::tile;
  using scalar_t = typename Math::scalar_t;
  static constexpr uint32_t kNotWritten = ~0u;
  // The vectors of a lane: vector t of every chunk of batch rows g, g + 8, ... As many loads in flight as registers
  // allow, since one round trip to L2 costs more than all of them.
  static constexpr int kChunks = kShape.chunks_per_warp, kLoads = kChunks * kShape.batch_tiles;
  static constexpr int kRounds = grid_rounds(kShape), kInFlight = (kLoads + kRounds - 1) / kRounds;
  const scalar_t* fetched;  // the lane's first vector of operand 0
  scalar_t* published;      // the vector that the lane sends of its cell 0, in the operand to be published next
  SharedAddress arrival;    // of the lane's first vector

  __device__ __forceinline__ void open() {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    auto* global = static_cast<scalar_t*>(tile.global);
    fetched = in_register(static_cast<const scalar_t*>(global) + g * this->pitch() + first_k());
    published = in_register(global + this->row_of(0) * this->pitch() + this->k_of(0));
    arrival = in_register(tile.operand + warp * kChunks * Layout::kChunkStride + g * kChunkBytes + t * kVectorBytes);
  }
  __device__ __forceinline__ void publish(int, const typename Layout::Elements& x) {
    Layout::gather(x, [&](int e, int q, Vec4 v) {
      if (this->exists(e) && threadIdx.x % 32 < Layout::kVectors)
        store_relaxed128(published + e * Layout::Owned::kRowsApart * this->pitch() + q * tile.gate_pitch, v);
    });
    published += tile.global_stride;
  }

  __device__ __forceinline__ SharedAddress await(int s) {
    const int g = threadIdx.x % 32 / 4;
    const scalar_t* from = fetched + s * tile.global_stride;
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
            arrival + (first + i) % kChunks * Layout::kChunkStride + (first + i) / kChunks * 8 * kChunkBytes, v[i]);
    }
    warp_sync();
    return tile.operand;
  }
  __device__ __forceinline__ void close() {}

 private:
  static __device__ __forceinline__ int first_k() {
    return static_cast<int>(threadIdx.x / 32) * kChunks * Layout::kChunkElements +
           static_cast<int>(threadIdx.x % 4) * Layout::kVectorElements;
  }
};

template <class Math, KernelShape kShape>
using Exchange = std::conditional_t<kShape.transport == Transport::kLocal, LocalExchange<Math, kShape>,
                                    std::conditional_t<kShape.transport == Transport::kGrid, GridExchange<Math, kShape>,
                                                       std::conditional_t<sends_sums(kShape), SumExchange<Math, kShape>,
                                                                          ClusterExchange<Math, kShape>>>>;

}  // namespace fusedlstm::cuda
