// The resident kernel: all time steps of one layer in one launch, W_hh in registers and shared memory from the first to
// the last.
//
//   One CTA owns `units` hidden units of a tile of the batch: their state, their outputs. The CTAs of a tile (1, a
//   cluster, or part of the grid) together hold W_hh once. blockIdx.y is the direction and blockIdx.z the member of an
//   ensemble.
//   Most CTAs hold the rows of W_hh that belong to their units, and multiply the operands of all units with them: these
//   travel, and the sums are of the CTA's own units. In the backward pass of a cluster a CTA holds the columns that
//   belong to its units, and multiplies its own operands: these stay, and the sums, of all units, travel. In a mesh it
//   holds a part of the columns of the rows that belong to its cluster: operands and sums travel.
//   One warp multiplies a share of the CTA's rows with a share of its K; one thread owns, for the whole sequence, the
//   state of some cells (owned_cells.cuh).
//   Synchronisation: the transport makes operand s readable before product s, and the sums readable after it, where a
//   cell's do not come from one warp alone: by a barrier of the CTA, or as they arrive from the cluster.
#pragma once
#include <algorithm>
#include <type_traits>

#include "cells.cuh"
#include "cuda/host/kernel_shapes.h"
#include "transport_bulk.cuh"
#include "transport_cluster.cuh"
#include "transport_grid.cuh"
#include "transport_local.cuh"
#include "transport_mesh.cuh"

namespace fusedlstm::cuda {

template <class Math, KernelShape kShape>
using TransportOf = std::conditional_t<
    kShape.transport == Transport::kLocal, LocalTransport<Math, kShape>,
    std::conditional_t<
        kShape.transport == Transport::kCluster, ClusterTransport<Math, kShape>,
        std::conditional_t<kShape.transport == Transport::kBulk, BulkTransport<Math, kShape>,
                           std::conditional_t<kShape.transport == Transport::kMesh, MeshTransport<Math, kShape>,
                                              GridTransport<Math, kShape>>>>>;

// Shared memory of a CTA, in bytes from its start.
template <class Math, KernelShape kShape>
struct SmemLayout {
  using Carrier = TransportOf<Math, kShape>;
  static constexpr int kBarriers = 0;
  static constexpr int kOperand = 128;
  static constexpr int kSums = kOperand + Carrier::kBuffers * Carrier::kOperandBytes;
  static constexpr int kStage = kSums + Carrier::Sums::kBytes;
  static constexpr int kWeights = kStage + Carrier::kStageBytes;
  static constexpr int kBytes = kWeights + kShape.shared_weight_bytes();
  static_assert(kBytes == smem_bytes(kShape, Math::kArithmetic), "the planner counts otherwise");
};

// part: of the weight, that this CTA has.
template <class Math, KernelShape kShape, class Carrier = TransportOf<Math, kShape>>
__device__ __forceinline__ void load_weight(typename Carrier::Product& product, const void* weight, int H,
                                            typename Carrier::WeightPart part) {
  const int pitch = Carrier::kOperands * part.gate_pitch;  // a weight that is resident has few elements
  // Whose places are found anew after this: the time loop has no registers for what both need.
  const int thread = in_register(static_cast<int>(threadIdx.x));
  const int lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;
  const int row_warp = warp / kShape.k_splits, k_split = warp % kShape.k_splits;
  const int first_k = k_split * kShape.chunks_per_warp * Carrier::kChunkElements + t * Carrier::kVectorElements;
  // The lane's vectors of two rows, by where the first ones are: the loads are a large part of the kernel's code.
  const auto loader = [&](int r) {
    struct Row {
      const typename Math::scalar_t* first;
      int columns;  // from there on, of those that the CTA has of its period
    } rows[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int unit = part.first_row() + unit_of_row<kShape>(r + i, row_warp, g);
      const int row = kShape.pass == Pass::kForward ? (r + i) % kShape.sums() * H + unit : unit;
      rows[i].first =
          in_register(static_cast<const typename Math::scalar_t*>(weight) + row * pitch + part.column(first_k));
      rows[i].columns = in_register(unit < H ? part.columns_from(first_k) : 0);
    }
    return [=](int c) -> RowPair {
      const int k = c * Carrier::kChunkElements;
      Vec4 v[2] = {};
#pragma unroll
      for (int i = 0; i < 2; ++i)
        load_constant128_if(part.in_period(k) < rows[i].columns, rows[i].first + part.distance(k), v[i]);
      return {Math::operands(v[0]), Math::operands(v[1])};
    };
  };
  constexpr int kHeld = Carrier::Product::kHeld;
#pragma unroll 1  // what goes into shared memory needs no registers of its own
  for (int r = 0; r < kShape.rows_per_lane && kHeld < kShape.chunks_per_warp; r += 2) {
    const auto load = loader(r);
#pragma unroll 1
    for (int c = kHeld; c < kShape.chunks_per_warp; ++c) product.share_weight(r, c, load(c));
  }
#pragma unroll
  for (int r = 0; r < kShape.rows_per_lane; r += 2) {
    const auto load = loader(r);
#pragma unroll
    for (int c = 0; c < kHeld; ++c) product.hold_weight(r, c, load(c));
  }
}

// Positions that change anything in the tile: those that some row runs, or all where resets may come after the end.
__device__ __forceinline__ int steps_of_tile(const RowStates& rows, int first_row, int batch_rows, int m) {
  if (!rows.lengths || rows.reset) return rows.steps();
  int longest = 0;
#pragma unroll 1
  for (int n = 0; n < batch_rows; ++n) longest = std::max(longest, length_of(rows, first_row + n, m));
  return std::max(std::min(longest, rows.end) - rows.begin, 0);
}

// All steps of the CTA's units. product: with its part of W_hh; transport: open; first_row: of the tile, in the batch.
template <class Math, KernelShape kShape, class Cell, class Args, class Carrier = TransportOf<Math, kShape>>
__device__ __forceinline__ void run_steps(const Args& args, const typename Carrier::Product& product,
                                          Carrier& transport, int first_row) {
  using Owned = typename Carrier::Owned;
  constexpr int kCells = Owned::kCount;
  constexpr Pass kPass = kShape.pass;
  // Where few registers are left, the product cannot spare any for what is fetched beside what is ready: then one makes
  // room for the other after it. Not where it adds to what is ready.
  constexpr bool kFetchesLate = Carrier::kFewRegistersLeft && !Carrier::Sums::kStartsFromCells;
  // Nor have GRID and MESH, beside their vectors in flight, any for where the data of each cell are. Others do, and
  // spare themselves the arithmetic.
  constexpr bool kFollows = Carrier::kFewRegistersLeft && is_cooperative(kShape.transport) && kPass == Pass::kForward;
  const RowStates& rows = args.rows;
  const int d = blockIdx.y, m = blockIdx.z, first_unit = transport.tile.first_unit;
  const int batch_rows = transport.tile.batch_rows, steps = transport.tile.steps;

  // All CTAs of GRID and MESH wait for the slowest load of any. What is fetched a step ahead comes from L2 if that has
  // been asked for the lines a step earlier: whatever they were written by before the launch, they may have left it.
  constexpr bool kAsksL2 = is_cooperative(kShape.transport) && kPass == Pass::kForward;

  const Owned owned;
  const auto make_cell = [&](int e) {
    const int n = owned.row(e), u = first_unit + owned.unit(e);
    const bool exists = n < batch_rows && u < rows.H;
    return Cell(args, d, first_row + n, u, m, exists);
  };
  // Number p in the order of running. Backward, a step reads what was saved of the one before it in time: also of one
  // before this part of the steps, which is not run here.
  const auto step_at = [&](int p) {
    if constexpr (kPass == Pass::kBackward) p = in_register(p);  // of CLUSTER one has no register to count it apart
    return p >= 0 && p < steps ? step_of(rows, rows.begin + Cell::time(d, p, steps))
                               : Step{.row = kPass == Pass::kBackward ? rows.row_before : 0};
  };
  typename Cell::OfUnit of_units[Owned::kUnitsOwned];
#pragma unroll
  for (int e = 0; e < kCells; ++e)
    of_units[Owned::unit_index(e)] = typename Cell::OfUnit(args, d, first_unit + owned.unit(e), m);
  Cell cells[kCells];
  typename Cell::Result results[kCells];
  static_assert(!kFollows || Owned::kUnitsOwned == 1, "all cells of a thread follow the first");
  // Before each use of where a cell's data are.
  const auto follow_first = [&] {
    if constexpr (kFollows)
#pragma unroll
      for (int e = 1; e < kCells; ++e) cells[e].follow(args, cells[0], Owned::rows_on(e));
  };
  const auto publish = [&](int s) {
    if (s >= steps) return;
    typename Carrier::Elements x;
#pragma unroll
    for (int e = 0; e < kCells; ++e)
#pragma unroll
      for (int q = 0; q < kShape.operands(); ++q) x[e][q] = cells[e].operand(q, results[e]);
    transport.publish(s, x);
  };

  const auto store = [&](const Step& step) {
    const int64_t first = in_register(Cell::first_element(args, step));
    follow_first();
#pragma unroll
    for (int e = 0; e < kCells; ++e) cells[e].store(args, step, first, results[e]);
    if (Cell::has_rest(args))  // the same for all threads
#pragma unroll
      for (int e = 0; e < kCells; ++e) cells[e].store_rest(args, step, results[e]);
  };

  // Those after `next` are needed for where `next` reads; asked for a position before that, in case they come from
  // memory. One copy of the code is enough; but behind a loop the assembler keeps steps in registers of every lane
  // instead of the warp, which GRID forward has none for.
  Step before, now, next, after;
  if constexpr (kPass == Pass::kForward) {
    now = step_at(0), next = step_at(1), after = step_at(2);
  } else {
#pragma unroll 1
    for (int p = -1; p < 3; ++p) {
      before = now;
      now = next;
      next = after;
      after = step_at(p);
    }
  }
#pragma unroll
  for (int e = 0; e < kCells; ++e) cells[e] = make_cell(e);
#pragma unroll
  for (int e = 0; e < kCells; ++e) cells[e].start(args, now, next);
  if constexpr (kPass == Pass::kForward) publish(0);  // backward, what position -1 comes to

  const bool has_cells = Owned::any_in_warp();  // others only multiply
  const typename Carrier::Sums sums(transport.tile);
  for (int s = -Cell::kLead; s < steps; ++s) {
    typename Cell::Ready ready[kCells];
    const Step later = step_at(s + Cell::kLead + 3);
    const auto fetch_resets = [&] {
      if (rows.reset)  // the same for all threads
#pragma unroll
        for (int e = 0; e < kCells; ++e) cells[e].prefetch_reset(args, next);
    };
    const auto use_and_fetch = [&] {
      follow_first();
#pragma unroll
      for (int e = 0; e < kCells; ++e) ready[e] = cells[e].ready(args, now, of_units[Owned::unit_index(e)]);
#pragma unroll
      for (int e = 0; e < kCells; ++e) cells[e].prefetch(args, next, after);
#pragma unroll
      for (int e = 0; e < kCells; ++e)
        if constexpr (kAsksL2) cells[e].ask_l2(args, after);
      if constexpr (kPass == Pass::kBackward || kFetchesLate) fetch_resets();
    };
    if (has_cells) {
      if constexpr (kPass == Pass::kForward && !kFetchesLate) fetch_resets();
      if constexpr (!kFetchesLate) use_and_fetch();
    }

    sums.add_products(
        product, s, [&] { return transport.await(s); }, [&](int e) -> auto& { return ready[e].sums; },
        [&] {
          if constexpr (kFetchesLate) use_and_fetch();
        });
    if (!has_cells) continue;
#pragma unroll
    for (int e = 0; e < kCells; ++e) results[e] = cells[e].advance(args, before.t, now, ready[e]);
    if (rows.reset) {
      bool any = false;
#pragma unroll
      for (int e = 0; e < kCells; ++e) any |= cells[e].enters();
      follow_first();
      // The vote keeps the compiler from asking for the flags earlier, which would wait for all that is being fetched.
      if (warp_any(any))
#pragma unroll
        for (int e = 0; e < kCells; ++e) cells[e].enter(args);
    }
    publish(s + 1);
    store(now);
    before = now;
    now = next;
    next = after;
    after = later;
  }
  follow_first();
#pragma unroll
  for (int e = 0; e < kCells; ++e) cells[e].finish(args);
  transport.close();
}

// Loads the weights, sets up the transport, and runs the steps. ctas: of a tile.
template <class Math, KernelShape kShape, class Cell, class Args>
__device__ __forceinline__ void run_recurrence(const Args& args, int ctas) {
  using scalar_t = typename Math::scalar_t;
  using Smem = SmemLayout<Math, kShape>;
  using Carrier = TransportOf<Math, kShape>;
  static_assert(IsTransport<Carrier>, "a transport has to offer all that IsTransport in transport.cuh lists");
  constexpr int kBatchRows = kShape.batch_rows(), kGates = sizes_of(kShape.cell).gates;
  const RowStates& rows = args.rows;
  const int H = rows.H, d = blockIdx.y, m = blockIdx.z, tile_index = blockIdx.x / ctas;
  const int first_unit = Carrier::rank(ctas) * Carrier::kUnits;
  // Elements of one gate's block in weights and operands: the next multiple of 16 bytes.
  const int gate_pitch = (H + Carrier::kVectorElements - 1) / Carrier::kVectorElements * Carrier::kVectorElements;
  const int warp = threadIdx.x / 32, k_split = warp % kShape.k_splits;
  const SharedAddress smem = in_register(shared_address(shared_memory()));

  // First, while there are registers for many loads in flight.
  typename Carrier::Product product(smem + Smem::kWeights + warp * Carrier::Product::kSharedBytes,
                                    k_split * kShape.chunks_per_warp * kChunkStride<kShape>);
  load_weight<Math, kShape>(product, &at<scalar_t>(args.weight_hh[d], m * int64_t{kGates} * H * gate_pitch), H,
                            {first_unit, gate_pitch});

  const int first_row = tile_index * kBatchRows;
  const int batch_rows = rows.B - first_row < kBatchRows ? rows.B - first_row : kBatchRows;
  const int steps = steps_of_tile(rows, first_row, batch_rows, m);
  Carrier transport;
  transport.tile = {.operand = smem + Smem::kOperand,
                    .barriers = smem + Smem::kBarriers,
                    .sums = smem + Smem::kSums,
                    .stage = smem + Smem::kStage,
                    .hidden_size = H,
                    .first_unit = first_unit,
                    .batch_rows = batch_rows,
                    .gate_pitch = gate_pitch,
                    .ctas = ctas,
                    .steps = steps,
                    .memory = args.exchange,
                    .memory_row = (m * rows.D + d) * exchanged_positions(rows.steps()) * rows.B + first_row,
                    .memory_rows = rows.B};
  if constexpr (Carrier::kClearedBytes > 0) {
    constexpr int kEnd = Smem::kOperand + Carrier::kClearedBytes;
    for (int i = Smem::kOperand + threadIdx.x * kVectorBytes; i < kEnd; i += kThreads * kVectorBytes)
      store_shared128(smem + i, Vec4{});
    block_sync();
  }
  transport.open();

  run_steps<Math, kShape, Cell>(args, product, transport, first_row);
}

// The shape as an index, since nvcc's host stubs cannot name a template argument of class type.
template <class Math, int kShapeIndex, class Cell, class Args>
__global__ void __launch_bounds__(kThreads, 1) recurrence_kernel(const __grid_constant__ Args args, int ctas) {
  constexpr KernelShape kShape = kKernelShapes[kShapeIndex];
  if constexpr (has_code(kShape, Math::kArithmetic, kArch / 10)) run_recurrence<Math, kShape, Cell>(args, ctas);
}

}  // namespace fusedlstm::cuda
