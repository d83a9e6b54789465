// The shapes that resident kernels are compiled in. The planner chooses among them and the launcher finds them here.
//
// Plain C++. Chosen so that the weights that a lane keeps, rows_per_lane * (chunks_per_warp - shared_chunks) *
// 4 words, take about half of its 255 registers. Hidden sizes below are for 16-bit elements; with 32 bits K holds half
// of them, and so do, where a CTA multiplies its own operands, its units.
#pragma once
#include <array>

#include "plan.h"
#include "transport_shape.h"

namespace fusedlstm::cuda {

inline constexpr auto kKernelShapes = std::to_array<KernelShape>({
    // cell, transport, pass, rows per lane, chunks per warp, K splits, batch tiles, chunks in shared memory
    {CellKind::kLstm, Transport::kLocal, Pass::kForward, 4, 2, 1, 1, 0},     //  64 units, H <= 64
    {CellKind::kLstm, Transport::kLocal, Pass::kForward, 4, 4, 1, 1, 0},     //  64 units, H <= 64 (32-bit)
    {CellKind::kLstm, Transport::kLocal, Pass::kForward, 8, 4, 1, 1, 0},     // 128 units, H <= 128
    {CellKind::kLstm, Transport::kLocal, Pass::kForward, 8, 8, 1, 1, 5},     // 128 units, H <= 128 (32-bit)
    {CellKind::kLstm, Transport::kCluster, Pass::kForward, 4, 2, 4, 1, 0},   //  16 units, H <= 256
    {CellKind::kLstm, Transport::kCluster, Pass::kForward, 4, 4, 2, 1, 0},   //  32 units, H <= 256
    {CellKind::kLstm, Transport::kCluster, Pass::kForward, 4, 4, 2, 2, 0},   //  32 units, H <= 256
    {CellKind::kLstm, Transport::kCluster, Pass::kForward, 4, 8, 2, 1, 0},   //  32 units, H <= 512
    {CellKind::kLstm, Transport::kCluster, Pass::kForward, 4, 8, 2, 2, 0},   //  32 units, H <= 512
    {CellKind::kLstm, Transport::kCluster, Pass::kForward, 4, 16, 2, 1, 8},  //  32 units, H <= 512 (32-bit)
    {CellKind::kLstm, Transport::kCluster, Pass::kForward, 8, 8, 2, 1, 4},   //  64 units, H <= 512
    {CellKind::kLstm, Transport::kGrid, Pass::kForward, 4, 1, 8, 1, 0},      //   8 units, H <= 256
    {CellKind::kLstm, Transport::kGrid, Pass::kForward, 4, 2, 8, 1, 0},      //   8 units, H <= 512
    {CellKind::kLstm, Transport::kGrid, Pass::kForward, 4, 4, 8, 1, 0},      //   8 units, H <= 1024
    {CellKind::kLstm, Transport::kGrid, Pass::kForward, 4, 8, 8, 1, 0},      //   8 units, H <= 1024, also in 32 bits
    {CellKind::kLstm, Transport::kGrid, Pass::kForward, 4, 8, 8, 2, 0},      //   8 units, H <= 1024 (32-bit)
    {CellKind::kLstm, Transport::kGrid, Pass::kForward, 4, 8, 8, 4, 0},      //   8 units, H <= 1024 (TF32)
    {CellKind::kLstm, Transport::kGrid, Pass::kForward, 8, 2, 8, 2, 0},      //  16 units, H <= 512
    {CellKind::kLstm, Transport::kGrid, Pass::kForward, 8, 4, 8, 1, 0},      //  16 units, H <= 1024
    // By 4 warps that share K: the sums of 8 take more shared memory than many devices have beside such operands.
    {CellKind::kLstm, Transport::kGrid, Pass::kForward, 4, 8, 4, 2, 0},      //  16 units, H <= 1024
    {CellKind::kLstm, Transport::kGrid, Pass::kForward, 4, 8, 4, 4, 0},      //  16 units, H <= 1024 (16-bit)
    {CellKind::kLstm, Transport::kGrid, Pass::kForward, 8, 6, 8, 1, 2},      //  16 units, H <= 1536
    {CellKind::kLstm, Transport::kGrid, Pass::kForward, 8, 6, 8, 2, 2},      //  16 units, H <= 1536
    {CellKind::kLstm, Transport::kGrid, Pass::kForward, 8, 8, 8, 1, 5},      //  16 units, H <= 2048
    {CellKind::kLstm, Transport::kLocal, Pass::kBackward, 2, 4, 2, 1, 0},    //  64 units, H <= 64
    {CellKind::kLstm, Transport::kLocal, Pass::kBackward, 2, 8, 2, 1, 0},    //  64 units, H <= 64 (32-bit)
    {CellKind::kLstm, Transport::kLocal, Pass::kBackward, 2, 16, 1, 1, 6},   // 128 units, H <= 128
    {CellKind::kLstm, Transport::kLocal, Pass::kBackward, 2, 32, 1, 1, 23},  // 128 units, H <= 128 (32-bit)
    {CellKind::kLstm, Transport::kCluster, Pass::kBackward, 4, 2, 1, 1, 0},  //  16 units (32-bit: 8), H <= 256
    {CellKind::kLstm, Transport::kCluster, Pass::kBackward, 4, 4, 1, 1, 0},  //  32 units (32-bit: 16), H <= 256
    {CellKind::kLstm, Transport::kCluster, Pass::kBackward, 4, 4, 1, 2, 0},  //  32 units (32-bit: 16), H <= 256
    {CellKind::kLstm, Transport::kCluster, Pass::kBackward, 4, 8, 1, 1, 0},  //  64 units (32-bit: 32), H <= 256
    {CellKind::kLstm, Transport::kCluster, Pass::kBackward, 8, 4, 1, 1, 0},  //  32 units (32-bit: 16), H <= 512
    {CellKind::kLstm, Transport::kCluster, Pass::kBackward, 8, 4, 1, 2, 0},  //  32 units (32-bit: 16), H <= 512
    {CellKind::kLstm, Transport::kCluster, Pass::kBackward, 8, 8, 1, 1, 4},  //  64 units (32-bit: 32), H <= 512
    {CellKind::kLstm, Transport::kGrid, Pass::kBackward, 2, 4, 8, 1, 0},     //  16 units, H <= 256
    {CellKind::kLstm, Transport::kGrid, Pass::kBackward, 2, 8, 8, 1, 0},     //  16 units, H <= 512
    {CellKind::kLstm, Transport::kGrid, Pass::kBackward, 2, 16, 8, 1, 0},    //  16 units, H <= 1024
    {CellKind::kLstm, Transport::kGrid, Pass::kBackward, 2, 16, 8, 2, 0},    //  16 units, H <= 1024
    {CellKind::kLstm, Transport::kGrid, Pass::kBackward, 2, 24, 8, 1, 8},    //  16 units, H <= 1536
    // What the planner may choose of CLUSTER for H > 256, in bulk.
    {CellKind::kLstm, Transport::kBulk, Pass::kForward, 4, 8, 2, 1, 0},    //  32 units, H <= 512
    {CellKind::kLstm, Transport::kBulk, Pass::kForward, 8, 8, 2, 1, 4},    //  64 units, H <= 512
    {CellKind::kLstm, Transport::kBulk, Pass::kBackward, 8, 4, 1, 1, 0},   //  32 units, H <= 512
    {CellKind::kLstm, Transport::kBulk, Pass::kBackward, 8, 8, 1, 1, 4},   //  64 units, H <= 512
    {CellKind::kLstm, Transport::kMesh, Pass::kForward, 4, 8, 1, 8, 1},    //   8 units, H <= 1024 (TF32), 64 rows
    {CellKind::kLstm, Transport::kMesh, Pass::kForward, 4, 8, 1, 4, 0},    //   8 units, H <= 1024 (TF32)
    {CellKind::kLstm, Transport::kMesh, Pass::kBackward, 2, 16, 1, 4, 0},  //  16 units, H <= 1024 (16-bit)
    {CellKind::kLstm, Transport::kMesh, Pass::kBackward, 2, 16, 2, 8, 0},  //   8 units, H <= 1024 (TF32), 64 rows
    {CellKind::kLstm, Transport::kMesh, Pass::kBackward, 2, 16, 2, 4, 0},  //   8 units, H <= 1024 (TF32)
    // The GRU: rows in multiples of its 3 gates, and of 2. Of it and of the RNN few shapes: each costs time to compile,
    // and space, in every arithmetic and architecture.
    {CellKind::kGru, Transport::kLocal, Pass::kForward, 6, 4, 1, 1, 0},     // 128 units, H <= 128
    {CellKind::kGru, Transport::kLocal, Pass::kForward, 6, 8, 1, 1, 5},     // 128 units, H <= 128 (32-bit)
    {CellKind::kGru, Transport::kLocal, Pass::kForward, 6, 2, 2, 1, 0},     //  64 units, H <= 64 (32-bit)
    {CellKind::kGru, Transport::kCluster, Pass::kForward, 6, 4, 4, 1, 0},   //  32 units, H <= 512
    {CellKind::kGru, Transport::kCluster, Pass::kForward, 6, 4, 4, 2, 0},   //  32 units, H <= 512
    {CellKind::kGru, Transport::kCluster, Pass::kForward, 6, 8, 4, 1, 4},   //  32 units, H <= 512 (32-bit)
    {CellKind::kGru, Transport::kGrid, Pass::kForward, 6, 4, 8, 1, 0},      //  16 units, H <= 1024
    {CellKind::kGru, Transport::kGrid, Pass::kForward, 6, 8, 8, 1, 4},      //  16 units, H <= 2048
    {CellKind::kGru, Transport::kLocal, Pass::kBackward, 2, 12, 1, 1, 3},   // 128 units, H <= 128
    {CellKind::kGru, Transport::kLocal, Pass::kBackward, 2, 24, 1, 1, 15},  // 128 units, H <= 128 (32-bit)
    {CellKind::kGru, Transport::kCluster, Pass::kBackward, 4, 3, 1, 1, 0},  //  32 units (32-bit: 16), H <= 256
    {CellKind::kGru, Transport::kCluster, Pass::kBackward, 8, 6, 1, 1, 3},  //  64 units (32-bit: 32), H <= 512
    {CellKind::kGru, Transport::kGrid, Pass::kBackward, 2, 12, 8, 1, 0},    //  16 units, H <= 1024
    {CellKind::kGru, Transport::kGrid, Pass::kBackward, 2, 24, 8, 1, 8},    //  16 units, H <= 2048
    // The RNN: with one gate, a CTA has more units.
    {CellKind::kRnn, Transport::kLocal, Pass::kForward, 2, 4, 1, 1, 0},     // 128 units, H <= 128
    {CellKind::kRnn, Transport::kLocal, Pass::kForward, 2, 8, 1, 1, 0},     // 128 units, H <= 128 (32-bit)
    {CellKind::kRnn, Transport::kCluster, Pass::kForward, 2, 8, 2, 1, 0},   //  64 units, H <= 512
    {CellKind::kRnn, Transport::kGrid, Pass::kForward, 4, 8, 8, 1, 0},      //  32 units, H <= 2048
    {CellKind::kRnn, Transport::kLocal, Pass::kBackward, 2, 4, 1, 1, 0},    // 128 units, H <= 128
    {CellKind::kRnn, Transport::kLocal, Pass::kBackward, 2, 8, 1, 1, 0},    // 128 units, H <= 128 (32-bit)
    {CellKind::kRnn, Transport::kCluster, Pass::kBackward, 4, 2, 1, 1, 0},  //  64 units (32-bit: 32), H <= 256
    {CellKind::kRnn, Transport::kGrid, Pass::kBackward, 4, 8, 8, 1, 0},     //  32 units, H <= 2048
});

constexpr int units_per_cta(const KernelShape& shape, Arithmetic arithmetic) {
  return transport_shape(shape, arithmetic).units;
}
constexpr int k_capacity(const KernelShape& shape, Arithmetic arithmetic) {
  return transport_shape(shape, arithmetic).k_capacity;
}

// Shared memory of one CTA; recurrence.cuh lays it out and checks this sum.
constexpr int smem_bytes(const KernelShape& shape, Arithmetic arithmetic) {
  const TransportShape sizes = transport_shape(shape, arithmetic);
  const int operand = shape.chunks() * shape.batch_rows() * 64;
  return 128 + sizes.operand_buffers * operand + sizes.sums_bytes + sizes.stage_bytes + shape.shared_weight_bytes();
}

// Compute capability, times ten, from which on the kernels run: their code for older ones is empty.
constexpr int needed_capability(Transport transport, Arithmetic arithmetic) {
  if (is_in_cluster(transport) || transport == Transport::kMesh) return 90;
  return arithmetic == Arithmetic::kBFloat16 || arithmetic == Arithmetic::kTf32 ? 80 : 75;
}

// The most shared memory that a CTA may have where code for this compute capability runs, times ten as well. Kernels
// that need more are empty in it. Code for 8.6 runs on 8.7 too, which has what 8.0 has.
constexpr int most_shared_memory(int capability) {
  if (capability < 80) return 64 << 10;
  if (capability == 89 || capability == 120 || capability == 121) return 99 << 10;
  if (capability < 90) return 163 << 10;
  return 227 << 10;
}

constexpr bool has_code(const KernelShape& shape, Arithmetic arithmetic, int capability) {
  return capability >= needed_capability(shape.transport, arithmetic) &&
         smem_bytes(shape, arithmetic) <= most_shared_memory(capability);
}

// Whether there is a kernel of this shape for this arithmetic.
constexpr bool is_compiled(const KernelShape& shape, Arithmetic arithmetic) {
  if (arithmetic == Arithmetic::kFloat64) return false;  // no tensor cores to speak of, and twice the registers
  // Enough to decide by whether bulk copies are the better way: the rest would cost space in every library.
  if (shape.transport == Transport::kBulk && arithmetic != Arithmetic::kBFloat16) return false;
  // One CTA holds the whole K: units beyond it would be idle, and so would be room for more than its units.
  if (shape.transport == Transport::kLocal &&
      k_capacity(shape, arithmetic) != units_per_cta(shape, arithmetic) * shape.operands())
    return false;
  // Nor has a cluster more units than its CTAs.
  if (is_in_cluster(shape.transport) && !sends_sums(shape) &&
      k_capacity(shape, arithmetic) > kMaxClusterSize * units_per_cta(shape, arithmetic))
    return false;
  // Nor has a grid, or a mesh, more than a device has SMs. Shapes of one tile of batch rows stay even so: they take so
  // little shared memory that on some devices nothing else holds as much K.
  constexpr int kMostSms = 192;  // of any device
  if (is_cooperative(shape.transport) && shape.batch_tiles > 1 &&
      k_capacity(shape, arithmetic) > kMostSms * units_per_cta(shape, arithmetic) * shape.operands())
    return false;
  // With few registers left a grid has none for what becomes of TF32 and float32 on their way, and spills.
  if (shape.transport == Transport::kGrid && product_bytes(arithmetic) == 4 &&
      leaves_few_registers(shape, units_per_cta(shape, arithmetic)))
    return false;
  // What a mesh has less of K than that of 1024 units, clusters have too.
  if (shape.transport == Transport::kMesh && k_capacity(shape, arithmetic) < 1024 * shape.operands()) return false;
  constexpr int kMostSharedMemory = 227 << 10;  // of a CTA on any device
  if (smem_bytes(shape, arithmetic) > kMostSharedMemory) return false;
  // FFMA keeps 8 sums a row, and spills where those of many rows, in one CTA beside what the cells start from, or the
  // indices of much K come on top of the weights. Of many tiles of batch rows it is no faster than STREAM.
  if (arithmetic == Arithmetic::kFloat32 &&
      (shape.rows_per_lane > (has_whole_sums(shape) ? 4 : 6) || shape.chunks_per_warp > 24 || shape.batch_tiles > 2))
    return false;
  return true;
}

}  // namespace fusedlstm::cuda
