// What a transport is, and what all or two of them share. A transport is how the operand of the next step (h forward,
// d_from_hidden backward) gets from the threads that compute it into the shared memory of every CTA that multiplies
// with it, and the sums of the product to the threads that own the cells. transport_local.cuh, transport_cluster.cuh,
// transport_bulk.cuh, transport_grid.cuh and transport_mesh.cuh have one each: the kernel differs there and nowhere
// else.
//
// Positions count the steps in order of running; operand s is published before it is awaited for product s.
// In shared memory an operand is [chunk][batch row][64 bytes], see arithmetic.cuh. An element is an operand already:
// rounded, and zero beyond the hidden size.
#pragma once
#include <concepts>

#include "cuda/host/launch.h"
#include "owned_cells.cuh"

namespace fusedlstm::cuda {

// What all transports know of the tile of the batch that their CTAs work on.
struct OperandTile {
  SharedAddress operand;   // this CTA's copy, buffer 0
  SharedAddress barriers;  // 16 bytes for mbarriers
  SharedAddress sums;      // Sums::kBytes of the transport, behind the operand
  SharedAddress stage;     // kStageBytes of the transport
  int hidden_size;
  int first_unit;      // of this CTA
  int batch_rows;      // of the tile that exist
  int gate_pitch;      // elements of K that belong to one operand of all units; a multiple of 16 bytes
  int ctas;            // that share the tile
  int steps;           // positions 0..steps-1 are published and awaited
  void* memory;        // `exchange`: scalar_t [members, directions, slots, batch rows][operands][gate_pitch]
  int64_t memory_row;  // the tile's first one, in slot 0
  int memory_rows;     // from one slot to the next
};

// What a transport's add_products can ask for the sums of a cell: any function of this form will do.
template <class T>
using SumOfCell = float (&(*)(int))[T::kSums];

// What the resident kernel asks of a transport, in this order.
template <class T>
concept IsTransport = requires(
    T transport, LaunchConfig& config, const Plan& plan, const RowStates& rows, void* memory, cudaStream_t stream,
    const typename T::WeightPart& part, int i, const typename T::Elements& elements, const typename T::Sums& sums,
    const typename T::Product& product, SharedAddress (*await)(), SumOfCell<T> sum, void (*meanwhile)()) {
  // On the host, before the launch: sets what it needs in config, and prepares exchange_bytes(plan, rows) of memory.
  { T::prepare_launch(config, plan, rows, memory, stream) } -> std::same_as<cudaError_t>;
  // Of shared memory, in this order, see SmemLayout.
  requires T::kBuffers > 0 && T::kOperandBytes > 0 && T::Sums::kBytes >= 0 && T::kStageBytes >= 0;
  // The number of this CTA among those of its tile (i).
  { T::rank(i) } -> std::same_as<int>;
  // {first_unit, gate_pitch}: which part of W_hh the CTA has, W_hh being [rows][operands][gate_pitch]. The unit of its
  // first row. The K that the CTA multiplies with comes in periods, whose columns follow each other: the column of
  // element i of K, and how many columns that exist its period has from there on. For an element of K that is i, whole
  // chunks, after another one of the same place in its chunk: how much later it is in its period, and by how many
  // columns.
  { part.first_row() } -> std::same_as<int>;
  { part.column(i) } -> std::same_as<int>;
  { part.columns_from(i) } -> std::same_as<int>;
  { part.in_period(i) } -> std::same_as<int>;
  { part.distance(i) } -> std::same_as<int>;
  // With `tile` set and the first kClearedBytes of its shared memory cleared, before all that follows.
  requires T::kClearedBytes >= 0;
  { transport.tile } -> std::same_as<OperandTile&>;
  transport.open();
  // What the thread's cells (Owned) give to operand i; then where operand i stands in shared memory, complete. Its
  // layout is that of OperandLayout.
  transport.publish(i, elements);
  { transport.await(i) } -> std::same_as<SharedAddress>;
  // Adds W_hh times the operand of position i to the sums of the thread's cells, those of cell e in sum(e), if there is
  // one: then await() gives what transport.await(i) does. meanwhile() is called when the warp has multiplied, before it
  // waits for others; it may still set the sums unless the product starts from them.
  requires std::constructible_from<typename T::Sums, const OperandTile&>;
  { sums.add_products(product, i, await, sum, meanwhile) } -> std::same_as<void>;
  { T::Sums::kStartsFromCells } -> std::convertible_to<bool>;
  // Before the CTA exits.
  transport.close();
};

// Whether there is an operand of position s. Backward, position -1 is the step that operand 0 comes from.
template <KernelShape kShape>
__device__ __forceinline__ bool has_operand(int s) {
  return kShape.pass == Pass::kForward || s >= 0;
}

// From a chunk of an operand to the next.
template <KernelShape kShape>
inline constexpr int kChunkStride = kShape.batch_rows() * kChunkBytes;

template <class Math, KernelShape kShape, class OwnedCells, bool kSwizzled = false>
struct OperandLayout {
  using scalar_t = typename Math::scalar_t;
  using Owned = OwnedCells;
  using Product = cuda::Product<Math, kShape.rows_per_lane, kShape.chunks_per_warp, kShape.shared_chunks, kSwizzled>;
  static constexpr int kElementBytes = sizeof(scalar_t);
  static constexpr int kChunkElements = kChunkBytes / kElementBytes;
  static constexpr int kVectorElements = kVectorBytes / kElementBytes;
  static constexpr int kOperandBytes = kShape.chunks() * kChunkStride<kShape>;
  static constexpr int kOperands = kShape.operands(), kSums = kShape.sums();
  static constexpr int kUnits = kUnitsOf<Math, kShape>;
  static constexpr int kBuffers = 2, kStageBytes = 0;
  // Of the operand and what is behind it, to be cleared before the start. Where nothing is ever published (beyond H,
  // beyond B) the weights are zero, but zero times garbage may be NaN.
  static constexpr int kClearedBytes = kBuffers * kOperandBytes;
  static constexpr bool kFewRegistersLeft = leaves_few_registers(kShape, kUnits);
  // What a thread publishes at a position.
  using Elements = scalar_t[Owned::kCount][kOperands];
  OperandTile tile;

  // Bytes from the start of an operand to element k of batch row n.
  static __device__ __forceinline__ int offset(int k, int n) {
    return k / kChunkElements * kChunkStride<kShape> +
           operand_offset<kSwizzled>(n, k % kChunkElements / kVectorElements) + k % kVectorElements * kElementBytes;
  }
  static __device__ __forceinline__ void store_element(SharedAddress to, uint16_t bits) { store_shared16(to, bits); }
  static __device__ __forceinline__ void store_element(SharedAddress to, uint32_t bits) { store_shared32(to, bits); }
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

// What CLUSTER and BULK forward and GRID have in common: a CTA multiplies the operands of all units with the rows of
// W_hh that belong to its own. MESH has another part of W_hh, the rest is the same.
template <class Math, KernelShape kShape>
struct OperandOfAll : OperandLayout<Math, kShape, SpacedCells<Math, kShape>> {
  using Layout = OperandLayout<Math, kShape, SpacedCells<Math, kShape>>;

  struct WeightPart {
    int first_unit, gate_pitch;
    __device__ __forceinline__ int columns() const { return Layout::kOperands * gate_pitch; }
    __device__ __forceinline__ int first_row() const { return first_unit; }
    __device__ __forceinline__ int column(int k) const { return k; }
    __device__ __forceinline__ int columns_from(int k) const { return columns() - k; }
    __device__ __forceinline__ int in_period(int k) const { return k; }
    __device__ __forceinline__ int distance(int k) const { return k; }
  };
};

// What CLUSTER forward, GRID and MESH have in common: elements travel in vectors of 16 bytes. The 32 elements of a
// warp, of one batch row or of several, are 32 * kElementBytes / 16 of them: lane l sends number l % kVectors.
template <class Math, KernelShape kShape>
struct VectorTransport : OperandOfAll<Math, kShape> {
  using Layout = OperandOfAll<Math, kShape>;
  using Layout::tile;
  static constexpr int kVectors = 32 / Layout::kVectorElements;
  static constexpr int kElementsBytes = kThreads * Layout::kElementBytes;
  static constexpr int kStageBytes = Layout::Owned::kCount * Layout::kOperands * kElementsBytes;
  using Owned = typename Layout::Owned;

  // Elements of K.
  __device__ __forceinline__ int pitch() const { return Layout::kOperands * tile.gate_pitch; }
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
  // Calls send(e, q, v) with the lane's vectors of what published(bits) makes of each element. Nobody overwrites the
  // stage before its readers are through: a barrier of the CTA stands between two positions.
  template <class Published, class Send>
  __device__ __forceinline__ void gather(const typename Layout::Elements& x, Published published, Send send) const {
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
          Layout::store_element(stage(e, q) + threadIdx.x * Layout::kElementBytes, published(Math::operand(x[e][q])));
    warp_sync();
#pragma unroll
    for (int e = 0; e < Owned::kCount; ++e)
#pragma unroll
      for (int q = 0; q < Layout::kOperands; ++q)
        if (!is_empty(e)) send(e, q, load_shared128(stage(e, q) + sender() * Layout::kElementBytes));
  }
};

}  // namespace fusedlstm::cuda
