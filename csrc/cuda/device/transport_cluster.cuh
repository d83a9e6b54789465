// CLUSTER: the CTAs of a cluster share W_hh, and send into each other's shared memory. Forward it is the operands that
// travel, and backward, where there is one for each gate, the sums.
#pragma once
#include <type_traits>

#include "sums.cuh"
#include "transport.cuh"
#include "transport_local.cuh"

namespace fusedlstm::cuda {

// What both passes have of a cluster.
struct InCluster {
  static cudaError_t prepare_launch(LaunchConfig& config, const Plan& plan, const RowStates&, void*, cudaStream_t) {
    config.cluster = dim3(plan.ctas_per_tile);
    return cudaSuccess;
  }
  static __device__ __forceinline__ int rank(int) { return cluster_rank(); }
  __device__ __forceinline__ void close() const { cluster_sync(); }  // none may exit while a peer sends to it
};

// For what is sent into two buffers, those of even and of odd positions: an mbarrier each counts the bytes that have
// arrived. expected: bytes of a position.
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

// Forward. Every CTA sends its part of the operand into all of them, itself included, by store_async. Two buffers are
// enough: a CTA publishes operand s + 1 only after it received all of operand s, which every peer sent only after it
// had finished reading operand s - 1.
template <class Math, KernelShape kShape>
struct OperandsInCluster : VectorTransport<Math, kShape>, InCluster {
  using Layout = VectorTransport<Math, kShape>;
  using Layout::tile;
  using Sums = PartialSums<Math, kShape, typename Layout::Owned>;
  static constexpr int kCopies = 32 / Layout::kVectors;       // lanes with the same vector, which serve different peers
  static constexpr int kPeers = kMaxClusterSize / kCopies;    // of a lane, if that many exist
  uint32_t places[Layout::Owned::kCount][Layout::kOperands];  // of the lane's vectors in buffer 0, after tile.barriers

  __device__ __forceinline__ int expected_bytes() const {
    return tile.batch_rows * this->pitch() * Layout::kElementBytes;
  }
  // Number i of the peers that the lane serves.
  static __device__ __forceinline__ int peer(int i) {
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
    const auto as_it_is = [](auto bits) { return bits; };
    Layout::gather(x, as_it_is, [&](int e, int q, Vec4 v) {
#pragma unroll
      for (int i = 0; i < kPeers; ++i)
        if (this->exists(e) && peer(i) < tile.ctas) {
          const SharedAddress to = map_cluster_address(tile.barriers, peer(i));
          store_async128(to + places[e][q] + buffer, v, to + barrier);
        }
    });
  }
  __device__ __forceinline__ SharedAddress await(int s) {
    ArrivalBarriers::await(tile.barriers, s, tile.steps, expected_bytes(), __PRETTY_FUNCTION__);
    return tile.operand + s % 2 * Layout::kOperandBytes;
  }
};

// Sums are sent in pairs of batch rows.
template <class Math, KernelShape kShape>
using PairedCells = SpacedCells<Math, kShape, 2>;

// float [source, or CTA that is sent to][batch row / 2][unit][2 batch rows], in two buffers, or, where a cell has
// several sums, [source][batch row][unit][sum], padded to a vector. kSwizzled: the units of neighbouring pairs of rows
// change places, so that the lanes of a warp, which have 8 units of 4 pairs, reach all banks.
template <class Math, KernelShape kShape, class OwnedCells, bool kSwizzled>
struct SumsLayout {
  using Owned = OwnedCells;
  static constexpr int kUnits = Owned::kUnits, kSums = kShape.sums();
  static constexpr int kSources = transport_shape(kShape, Math::kArithmetic).sources;
  static_assert(kUnits % (kSwizzled ? 16 : 8) == 0, "units that change places have one owner");
  static constexpr int kPacketRows = kSums > 1 ? 1 : 2;  // sums of a unit that stand together, and are sent together
  static constexpr int kPacketBytes = kPacketRows * sums_of_unit(kShape) * 4;
  static constexpr int kSourceBytes = kShape.batch_rows() / kPacketRows * kUnits * kPacketBytes;
  static constexpr int kBufferBytes = kSources * kSourceBytes;
  static constexpr int kBytes = 2 * kBufferBytes;
  const OperandTile& tile;

  explicit __device__ __forceinline__ SumsLayout(const OperandTile& tile) : tile(tile) {}

  // Of a packet.
  static __device__ __forceinline__ int place(int unit, int row) {
    return (row / kPacketRows * kUnits + (kSwizzled ? unit ^ row / 2 % 4 * 4 : unit)) * kPacketBytes;
  }
};

// Who sends sums to whom in a cluster that is all CTAs of the tile: every CTA to all, of the units that exist.
template <class Math, KernelShape kShape>
struct PeersOfTile {
  using Owned = PairedCells<Math, kShape>;
  // The number of the warp's sums among those of a unit.
  static __device__ __forceinline__ int source(const OperandTile& tile) { return tile.first_unit / Owned::kUnits; }
  // Units of the cluster that have sums, from its first one on.
  static __device__ __forceinline__ int units(const OperandTile& tile) { return tile.hidden_size; }
  // Sums that the CTA is sent of a batch row.
  static __device__ __forceinline__ int sums(const OperandTile& tile) {
    const int left = tile.hidden_size - tile.first_unit;
    return tile.ctas * (left < Owned::kUnits ? left : Owned::kUnits);
  }
  static __device__ __forceinline__ int batch_rows(const OperandTile& tile) { return tile.batch_rows; }
};

// By stores of a packet each.
template <class Math, KernelShape kShape, class Peers>
struct SumsByStores : SumsLayout<Math, kShape, typename Peers::Owned, false> {
  using Layout = SumsLayout<Math, kShape, typename Peers::Owned, false>;
  using Layout::Layout, Layout::tile, Layout::kUnits, Layout::kSums, Layout::kSourceBytes, Layout::kBufferBytes,
      Layout::place;
  static constexpr int kStageBytes = 0;

  // Of batch rows in pairs, since that is what a lane has.
  static __device__ __forceinline__ int expected_bytes(const OperandTile& tile) {
    return Peers::sums(tile) * ((Peers::batch_rows(tile) + 1) / 2) * (2 / Layout::kPacketRows) * Layout::kPacketBytes;
  }
  // Sends the lane's sums of 8 batch rows.
  __device__ __forceinline__ void store(int s, int first_row, const float (&acc)[kShape.rows_per_lane][2]) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, row = first_row + lane % 4 * 2;
    if (row >= tile.batch_rows) return;
    // After tile.barriers, of this CTA or a peer.
    const uint32_t mine = in_register(static_cast<uint32_t>(tile.sums - tile.barriers) + s % 2 * kBufferBytes +
                                      Peers::source(tile) * kSourceBytes + place(g, row));
    const uint32_t barrier = in_register(ArrivalBarriers::offset(s));
    const int first_unit = unit_of_row<kShape>(0, warp / kShape.k_splits, 0);
    const int units = Peers::units(tile) - first_unit - g;
#pragma unroll
    for (int r = 0; r < kShape.rows_per_lane; r += kSums) {
      const int group = r / kSums * 8, unit = first_unit + group;  // the first of the group
      if (group >= units) continue;
      const SharedAddress peer = map_cluster_address(tile.barriers, unit / kUnits);
      const SharedAddress to = peer + mine + place(unit % kUnits, 0);
      if constexpr (kSums == 1) {
        store_async64(to, float_bits(acc[r][0]), float_bits(acc[r][1]), peer + barrier);
      } else {
#pragma unroll
        for (int e = 0; e < 2; ++e) store_async128(to + place(0, e), vector_of_sums<kSums>(acc, r, e), peer + barrier);
      }
    }
  }
  __device__ __forceinline__ void send(int) const {}
};

// Sums that are sent to the CTAs whose units they are of; those add up what has come from all, in fixed order. Two
// buffers are enough: a peer sends sums s + 2 only after it received all of s + 1, which this CTA sent only after it
// had read sums s. Way: how they are sent.
template <class Math, KernelShape kShape, class Way>
struct SentSums : Way {
  using Way::Way, Way::tile;
  using Owned = typename Way::Owned;
  static constexpr bool kStartsFromCells = false;

  template <class Product, class Await, class Sum, class Meanwhile>
  __device__ __forceinline__ void add_products(const Product& product, int s, Await await, Sum sum,
                                               Meanwhile meanwhile) const {
    add_through_memory<kShape, Owned>(*this, product, s, await, sum, meanwhile);
  }
  __device__ __forceinline__ void await(int s) const {
    ArrivalBarriers::await(tile.barriers, s, tile.steps, Way::expected_bytes(tile), __PRETTY_FUNCTION__);
  }
  __device__ __forceinline__ void add(int s, int e, float (&sums)[Way::kSums]) const {
    const Owned owned;
    const int unit = owned.unit(e), row = owned.row(e);
    const SharedAddress from =
        tile.sums + s % 2 * Way::kBufferBytes + Way::place(unit, row) + row % Way::kPacketRows * 4;
    if constexpr (Way::kSums > 1) {
#pragma unroll
      for (int i = 0; i < Way::kSources; ++i) add_vector(from + i * Way::kSourceBytes, sums);
    } else {
      float odd = 0;  // two chains of additions take half the time of one
#pragma unroll
      for (int i = 0; i < Way::kSources; ++i)
        (i % 2 ? odd : sums[0]) += bits_float(load_shared32(from + i * Way::kSourceBytes));
      sums[0] += odd;
    }
  }
};

// Backward. Every CTA multiplies the operands of its own units, for sums of all units.
template <class Math, KernelShape kShape, class Way>
struct SumsInCluster : OwnOperand<Math, kShape, PairedCells<Math, kShape>>, InCluster {
  using Layout = OwnOperand<Math, kShape, PairedCells<Math, kShape>>;
  using Layout::tile;
  using Sums = SentSums<Math, kShape, Way>;
  static constexpr int kStageBytes = Sums::kStageBytes;
  static constexpr int kClearedBytes = Layout::kClearedBytes + Sums::kBytes;  // what no CTA sends is added as zeros

  __device__ __forceinline__ void open() {
    Layout::open();
    ArrivalBarriers::open(tile.barriers, Sums::expected_bytes(tile));
  }
};

template <class Math, KernelShape kShape>
using ClusterTransport =
    std::conditional_t<sends_sums(kShape),
                       SumsInCluster<Math, kShape, SumsByStores<Math, kShape, PeersOfTile<Math, kShape>>>,
                       OperandsInCluster<Math, kShape>>;

}  // namespace fusedlstm::cuda
