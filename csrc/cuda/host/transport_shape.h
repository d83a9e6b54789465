// What a kernel's shape comes to on its transport: what a CTA holds of W_hh, and its shared memory beside the weights.
// One function for each way to go; the twin of what device/transport_*.cuh lays out, which is checked against it.
//
// Plain C++.
#pragma once
#include <algorithm>

#include "plan.h"

namespace fusedlstm::cuda {

constexpr int product_bytes(Arithmetic arithmetic) {  // of one element of weights and operand
  return arithmetic == Arithmetic::kFloat64                                      ? 8
         : arithmetic == Arithmetic::kTf32 || arithmetic == Arithmetic::kFloat32 ? 4
                                                                                 : 2;
}

// Of one CTA, but for k_capacity. All zero for STREAM.
struct TransportShape {
  int units;            // hidden units per CTA
  int k_capacity;       // elements of K that one set of CTAs holds, if it has room for as many
  int operand_buffers;  // one may be read while another is written
  int sources;      // warps or CTAs whose sums a cell takes from shared memory, at most; 0: they are in its registers
  int sums_bytes;   // of shared memory: sums on their way to the threads that own the cells
  int stage_bytes;  // of shared memory: what is gathered there before it is sent
};

// Whether a warp of LOCAL that has multiplied also has the whole sums, and no other thread needs them.
constexpr bool has_whole_sums(const KernelShape& shape) {
  return shape.transport == Transport::kLocal && shape.k_splits == 1 && shape.batch_tiles == 1;
}
// Whether a CTA of a cluster multiplies its own operands, and sends the sums of all units to the CTAs that own them:
// where a cell has several gates, fewer bytes than the operands of all units. Otherwise it has the operands of all, for
// sums of its own.
constexpr bool sends_sums(const KernelShape& shape) {
  return is_in_cluster(shape.transport) && shape.pass == Pass::kBackward;
}

constexpr int cells_per_thread(const KernelShape& shape, int units) {
  constexpr int kThreads = 32 * KernelShape::kWarps;
  return (units * shape.batch_rows() + kThreads - 1) / kThreads;
}

// Weights and several cells have most of a thread's registers.
constexpr bool leaves_few_registers(const KernelShape& shape, int units) {
  return cells_per_thread(shape, units) > 1 && shape.weight_words() > 64;
}

// The sums of a unit as they lie in shared memory: in a vector of 4, or a single one.
constexpr int sums_of_unit(const KernelShape& shape) {
  return shape.sums() > 1 ? 4 : 1;
}

// Where a CTA has the rows of W_hh that belong to its units, and the whole K.
constexpr TransportShape shape_of_rows(const KernelShape& shape, int element_bytes) {
  const int units = shape.rows() / shape.sums();
  const int row_bytes = (sums_of_unit(shape) * units + 4) * 4;  // 4 floats of padding
  return {.units = units,
          .k_capacity = shape.chunks() * 64 / element_bytes,
          .operand_buffers = 2,
          .sources = shape.k_splits,
          .sums_bytes = 2 * shape.k_splits * shape.batch_rows() * row_bytes,
          .stage_bytes = 0};
}

// Elements of a warp's cells that are gathered into vectors.
constexpr int vector_stage_bytes(const KernelShape& shape, int units, int element_bytes) {
  return cells_per_thread(shape, units) * shape.operands() * 32 * KernelShape::kWarps * element_bytes;
}

constexpr TransportShape local_shape(const KernelShape& shape, int element_bytes) {
  TransportShape local = shape_of_rows(shape, element_bytes);
  if (has_whole_sums(shape)) local.sources = local.sums_bytes = 0;
  return local;
}

// CLUSTER forward.
constexpr TransportShape cluster_operands_shape(const KernelShape& shape, int element_bytes) {
  TransportShape cluster = shape_of_rows(shape, element_bytes);
  cluster.stage_bytes = vector_stage_bytes(shape, cluster.units, element_bytes);
  return cluster;
}

// CLUSTER backward: the columns of W_hh that belong to the CTA's units, and all rows.
constexpr TransportShape cluster_sums_shape(const KernelShape& shape, int element_bytes) {
  const int units = shape.chunks() * 64 / element_bytes / shape.operands();
  const int sources = std::min(shape.rows() / units, kMaxClusterSize);
  return {.units = units,
          .k_capacity = shape.rows() * shape.operands(),
          .operand_buffers = 2,
          .sources = sources,
          .sums_bytes = 2 * sources * units * shape.batch_rows() * 4,
          .stage_bytes = 0};
}

// BULK: what is sent backward is gathered in one more buffer for each that it arrives in; forward in the operand
// itself.
constexpr TransportShape bulk_shape(const KernelShape& shape, int element_bytes) {
  if (!sends_sums(shape)) return shape_of_rows(shape, element_bytes);
  TransportShape bulk = cluster_sums_shape(shape, element_bytes);
  bulk.stage_bytes = bulk.sums_bytes;
  return bulk;
}

constexpr TransportShape grid_shape(const KernelShape& shape, int element_bytes) {
  TransportShape grid = shape_of_rows(shape, element_bytes);
  grid.operand_buffers = 1;
  grid.stage_bytes = vector_stage_bytes(shape, grid.units, element_bytes);
  return grid;
}
// The positions of which GRID's and MESH's exchange buffer has room for the operand at once, of T: with 16 bits, 4 MB
// forward and 16 MB backward for H = 1024 and B = 64. transport_grid.cuh says why that is enough.
inline constexpr int kRingPositions = 32;
constexpr int64_t exchanged_positions(int64_t T) {
  return std::min<int64_t>(T, kRingPositions);
}
// In how many rounds a lane of GRID or MESH fetches its vectors of the operand, at most 8 of them at once.
constexpr int grid_rounds(const KernelShape& shape) {
  return (shape.chunks() / KernelShape::kWarps * shape.batch_tiles + 7) / 8;
}

// Where a CTA has a part of K of the rows of its cluster.
constexpr TransportShape mesh_shape(const KernelShape& shape, int element_bytes) {
  const int units = shape.rows() / shape.sums() / kMeshClusterSize, sources = kMeshClusterSize * shape.k_splits;
  return {.units = units,
          .k_capacity = kMeshClusterSize * shape.chunks() * 64 / element_bytes,
          .operand_buffers = 1,
          .sources = sources,
          .sums_bytes = 2 * sources * units * shape.batch_rows() * sums_of_unit(shape) * 4,
          .stage_bytes = vector_stage_bytes(shape, units, element_bytes)};
}

constexpr TransportShape transport_shape(const KernelShape& shape, Arithmetic arithmetic) {
  const int element_bytes = product_bytes(arithmetic);
  switch (shape.transport) {
    case Transport::kLocal:
      return local_shape(shape, element_bytes);
    case Transport::kCluster:
      return sends_sums(shape) ? cluster_sums_shape(shape, element_bytes)
                               : cluster_operands_shape(shape, element_bytes);
    case Transport::kBulk:
      return bulk_shape(shape, element_bytes);
    case Transport::kGrid:
      return grid_shape(shape, element_bytes);
    case Transport::kMesh:
      return mesh_shape(shape, element_bytes);
    case Transport::kStream:
      break;
  }
  return {};
}

}  // namespace fusedlstm::cuda
