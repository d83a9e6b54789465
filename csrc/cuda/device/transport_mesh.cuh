// MESH: clusters of CTAs share W_hh. A cluster has the rows of its units, and each of its CTAs a part of K:
// so it fetches only that part of the operand, through global memory as GRID does, and the sums, of all units of the
// cluster, go to the CTAs that own these as those of CLUSTER's backward pass do.
#pragma once
#include <algorithm>

#include "transport_cluster.cuh"
#include "transport_grid.cuh"

namespace fusedlstm::cuda {

// The rows of W_hh that belong to the units of the cluster, and of CTA i part i of their columns. Columns come in whole
// chunks, and are shared out evenly whatever the hidden size: the last CTAs may have fewer, or none.
template <class Math, KernelShape kShape>
struct PartOfColumns {
  using Layout = OperandLayout<Math, kShape, SpacedCells<Math, kShape>>;
  static constexpr int kUnits = kMeshClusterSize * Layout::kUnits;  // of the cluster
  int first_unit, gate_pitch;

  // The CTA's number in its cluster.
  static __device__ __forceinline__ int rank(int first_unit) { return first_unit / Layout::kUnits % kMeshClusterSize; }
  __device__ __forceinline__ int all() const { return Layout::kOperands * gate_pitch; }
  __device__ __forceinline__ int most() const {
    constexpr int kUnit = kMeshClusterSize * Layout::kChunkElements;
    return (all() + kUnit - 1) / kUnit * Layout::kChunkElements;
  }
  __device__ __forceinline__ int first_column() const { return rank(first_unit) * most(); }
  __device__ __forceinline__ int columns() const { return std::min(most(), all() - first_column()); }
  __device__ __forceinline__ int first_row() const { return first_unit / kUnits * kUnits; }
  __device__ __forceinline__ int column(int k) const { return first_column() + k; }
  __device__ __forceinline__ int columns_from(int k) const { return columns() - k; }
  __device__ __forceinline__ int in_period(int k) const { return k; }
  __device__ __forceinline__ int distance(int k) const { return k; }
};

// Every CTA sends to all of its cluster, also of units that do not exist. So each waits at every position for all of
// them, as SentSums and the ring of OperandInMemory count on, even where it has no unit that exists, or no column.
template <class Math, KernelShape kShape>
struct PeersOfCluster {
  using Owned = SpacedCells<Math, kShape>;
  static constexpr int kSources = transport_shape(kShape, Math::kArithmetic).sources;
  static __device__ __forceinline__ int source(const OperandTile& tile) {
    const int k_split = threadIdx.x / 32 % kShape.k_splits;
    return cluster_rank() * kShape.k_splits + k_split;
  }
  static __device__ __forceinline__ int units(const OperandTile&) { return PartOfColumns<Math, kShape>::kUnits; }
  static __device__ __forceinline__ int sums(const OperandTile&) { return kSources * Owned::kUnits; }
  // Such that what is expected is counted anew at each position: the largest kernels have no register to keep it in.
  static __device__ __forceinline__ int batch_rows(const OperandTile& tile) { return in_register(tile.batch_rows); }
};

template <class Math, KernelShape kShape>
struct MeshTransport : OperandInMemory<Math, kShape, PartOfColumns<Math, kShape>> {
  using Operand = OperandInMemory<Math, kShape, PartOfColumns<Math, kShape>>;
  using Operand::tile;
  using Sums = SentSums<Math, kShape, SumsByStores<Math, kShape, PeersOfCluster<Math, kShape>>>;
  static constexpr int kClearedBytes = Operand::kOperandBytes + Sums::kBytes;  // no sums come of rows beyond the batch

  static cudaError_t prepare_launch(LaunchConfig& config, const Plan& plan, const RowStates& rows, void* memory,
                                    cudaStream_t stream) {
    config.cluster = dim3(kMeshClusterSize);
    return Operand::prepare_launch(config, plan, rows, memory, stream);
  }
  __device__ __forceinline__ void open() {
    Operand::open();
    ArrivalBarriers::open(tile.barriers, Sums::expected_bytes(tile));
  }
  __device__ __forceinline__ void close() const { cluster_sync(); }  // none may exit while a peer sends to it
};

}  // namespace fusedlstm::cuda
