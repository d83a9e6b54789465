// LOCAL: one CTA has all units of its tile of the batch, and needs nothing from others.
#pragma once
#include <type_traits>

#include "sums.cuh"
#include "transport.cuh"

namespace fusedlstm::cuda {

// What LOCAL and CLUSTER backward have in common: a CTA multiplies the operands of its own units, with the columns of
// W_hh that belong to them and all its rows. Its threads write into the operand itself. It has two buffers, so that one
// may still be read while the next is written: whoever writes operand s + 1 has passed the barrier before product s,
// after all of product s - 1.
template <class Math, KernelShape kShape, class OwnedCells, bool kSwizzled = false>
struct OwnOperand : OperandLayout<Math, kShape, OwnedCells, kSwizzled> {
  using Layout = OperandLayout<Math, kShape, OwnedCells, kSwizzled>;
  using Layout::tile;
  using Owned = OwnedCells;
  SharedAddress first[Owned::kUnitsOwned];  // operand of the first cell of each unit, in buffer 0

  // Gates have their place in K whatever H is: a period is one.
  struct WeightPart {
    static constexpr int kOfWarp = kShape.chunks_per_warp * Layout::kChunkElements;
    static_assert(Layout::kUnits % Layout::kChunkElements == 0 || Layout::kChunkElements % Layout::kUnits == 0,
                  "else a lane's vectors are not of one place in all periods");
    static_assert(Layout::kUnits % kOfWarp == 0 || kOfWarp % Layout::kUnits == 0, "as above");
    int first_unit, gate_pitch;
    __device__ __forceinline__ int first_row() const { return 0; }
    __device__ __forceinline__ int column(int k) const { return first_unit + distance(k); }
    __device__ __forceinline__ int columns_from(int k) const { return gate_pitch - first_unit - in_period(k); }
    __device__ __forceinline__ int in_period(int k) const { return k % Layout::kUnits; }
    __device__ __forceinline__ int distance(int k) const { return k / Layout::kUnits * gate_pitch + in_period(k); }
  };

  __device__ __forceinline__ void open() {
    const Owned owned;
#pragma unroll
    for (int e = 0; e < Owned::kCount; ++e)
      if (Owned::rows_on(e) == 0)
        first[Owned::unit_index(e)] = in_register(tile.operand + Layout::offset(owned.unit(e), owned.row(e)));
  }
  __device__ __forceinline__ void publish(int s, const typename Layout::Elements& x) {
    const Owned owned;
#pragma unroll
    for (int e = 0; e < Owned::kCount; ++e)
#pragma unroll
      for (int q = 0; q < Layout::kOperands; ++q)
        if (owned.exists(e))
          Layout::store_element(first[Owned::unit_index(e)] + Owned::rows_on(e) * kChunkBytes +
                                    s % 2 * Layout::kOperandBytes + Layout::offset(q * Layout::kUnits, 0),
                                Math::operand(x[e][q]));
  }
  __device__ __forceinline__ SharedAddress await(int s) {
    block_sync();
    return tile.operand + s % 2 * Layout::kOperandBytes;
  }
};

// Sums that are whole where they are multiplied: each thread has those of its own cells.
template <class Math, KernelShape kShape>
struct WholeSums {
  static constexpr int kBytes = 0;
  static constexpr bool kStartsFromCells = kShape.pass == Pass::kForward;

  explicit __device__ __forceinline__ WholeSums(const OperandTile&) {}

  template <class Product, class Await, class Sum, class Meanwhile>
  __device__ __forceinline__ void add_products(const Product& product, int s, Await await, Sum sum,
                                               Meanwhile meanwhile) const {
    constexpr int kSums = kShape.sums(), kCells = MultipliedCells<Math, kShape>::kCount;
    float acc[kShape.rows_per_lane][2] = {};
    if constexpr (kStartsFromCells) {
#pragma unroll
      for (int e = 0; e < kCells; ++e)
#pragma unroll
        for (int q = 0; q < kSums; ++q) acc[e / 2 * kSums + q][e % 2] = sum(e)[q];
    }
    if (has_operand<kShape>(s)) product.multiply(await(), kChunkStride<kShape>, acc);
    meanwhile();
#pragma unroll
    for (int e = 0; e < kCells; ++e)
#pragma unroll
      for (int q = 0; q < kSums; ++q) sum(e)[q] = acc[e / 2 * kSums + q][e % 2];
  }
};

template <class Math, KernelShape kShape, bool kWhole = has_whole_sums(kShape)>
using LocalOperand =
    OwnOperand<Math, kShape, std::conditional_t<kWhole, MultipliedCells<Math, kShape>, SpacedCells<Math, kShape>>,
               kWhole && Math::kTensorCores>;

template <class Math, KernelShape kShape>
struct LocalTransport : LocalOperand<Math, kShape> {
  using Layout = LocalOperand<Math, kShape>;
  using Sums = std::conditional_t<has_whole_sums(kShape), WholeSums<Math, kShape>,
                                  PartialSums<Math, kShape, typename Layout::Owned>>;

  static cudaError_t prepare_launch(LaunchConfig&, const Plan&, const RowStates&, void*, cudaStream_t) {
    return cudaSuccess;
  }
  static __device__ __forceinline__ int rank(int) { return 0; }
  __device__ __forceinline__ void close() {}
};

}  // namespace fusedlstm::cuda
