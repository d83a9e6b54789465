// The resident kernel: all time steps of one layer in one launch, W_hh in registers and shared memory from the first to
// the last.
//
//   One CTA owns `units` hidden units of a tile of the batch: their weight rows, their state, their outputs. The CTAs
//   of a tile (1, a cluster, or part of the grid) together hold W_hh once. blockIdx.y is the direction and
//   blockIdx.z the member of an ensemble.
//   One warp multiplies a share of the rows with a share of K; one thread owns, for the whole sequence, the state of
//   some cells (owned_cells.cuh).
//   Synchronisation: the exchange makes operand s readable; where warps share K, a barrier of the CTA per position
//   separates the writers of partial sums from their readers.
#pragma once
#include <algorithm>

#include "cells.cuh"
#include "cuda/host/kernel_shapes.h"
#include "sums.cuh"

namespace fusedlstm::cuda {

// Shared memory of a CTA, in bytes from its start.
template <class Math, KernelShape kShape>
struct SmemLayout {
  using Traffic = Exchange<Math, kShape>;
  static constexpr int kBarriers = 0;
  static constexpr int kOperand = 128;
  static constexpr int kPartials = kOperand + Traffic::kBuffers * Traffic::kOperandBytes;
  static constexpr int kStage = kPartials + PartialSums<Math, kShape>::kBytes + Traffic::kSumsBytes;
  static constexpr int kWeights = kStage + Traffic::kStageBytes;
  static constexpr int kBytes = kWeights + kShape.shared_weight_bytes();
  static_assert(kBytes == smem_bytes(kShape, Math::kArithmetic), "the planner counts otherwise");
};

template <class Math, KernelShape kShape>
using ProductOf = Product<Math, kShape.rows_per_lane, kShape.chunks_per_warp, kShape.shared_chunks,
                          ExchangeLayout<Math, kShape>::kSwizzled>;

template <class Math, KernelShape kShape>
__device__ __forceinline__ void load_weight(ProductOf<Math, kShape>& product, const void* weight, int H, int gate_pitch,
                                            int first_unit) {
  using Layout = ExchangeLayout<Math, kShape>;
  constexpr int kOperands = kShape.operands();
  // Where the operands are those of the CTA's own units, they have their place in K whatever H is.
  constexpr int kGateElements = Layout::kOwnOperands ? Layout::kUnits : 0;
  const int first_row = sends_sums(kShape) ? 0 : first_unit, first_k = sends_sums(kShape) ? first_unit : 0;
  const int pitch = kOperands * gate_pitch;  // a weight that is resident has few elements
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int row_warp = warp / kShape.k_splits, k_split = warp % kShape.k_splits;
  const auto load = [&](int r, int c) -> RowPair {
    int k = (k_split * kShape.chunks_per_warp + c) * Layout::kChunkElements + t * Layout::kVectorElements;
    bool exists = k < pitch;
    if constexpr (kGateElements > 0) {
      exists = first_k + k % kGateElements < gate_pitch;
      k = k / kGateElements * gate_pitch + first_k + k % kGateElements;
    }
    Vec4 rows[2] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int unit = first_row + unit_of_row<kShape>(r + i, row_warp, g);
      const int row = kShape.pass == Pass::kForward ? (r + i) % 4 * H + unit : unit;
      if (unit < H && exists)
        rows[i] = load_constant128(static_cast<const typename Math::scalar_t*>(weight) + row * pitch + k);
    }
    return {Math::operands(rows[0]), Math::operands(rows[1])};
  };
  constexpr int kHeld = ProductOf<Math, kShape>::kHeld;
#pragma unroll
  for (int r = 0; r < kShape.rows_per_lane; r += 2) {
#pragma unroll 1  // what goes into shared memory needs no registers of its own
    for (int c = kHeld; c < kShape.chunks_per_warp; ++c) product.share_weight(r, c, load(r, c));
  }
#pragma unroll
  for (int r = 0; r < kShape.rows_per_lane; r += 2)
#pragma unroll
    for (int c = 0; c < kHeld; ++c) product.hold_weight(r, c, load(r, c));
}

// Positions that change anything in the tile: those that some row runs, or all where resets may come after the end.
__device__ __forceinline__ int steps_of_tile(const RowStates& rows, int first_row, int batch_rows, int m) {
  if (!rows.lengths || rows.reset) return rows.T;
  int steps = 0;
  for (int n = 0; n < batch_rows; ++n) steps = std::max(steps, length_of(rows, first_row + n, m));
  return steps;
}

template <class Math, KernelShape kShape, class Cell, class Args>
__device__ __forceinline__ void run_recurrence(const Args& args, int ctas) {
  using scalar_t = typename Math::scalar_t;
  using Smem = SmemLayout<Math, kShape>;
  using Traffic = Exchange<Math, kShape>;
  using Owned = OwnedCells<Math, kShape>;
  constexpr int kBatchRows = kShape.batch_rows(), kCells = Owned::kCount;
  constexpr Pass kPass = kShape.pass;
  // Where weights and several cells have most of the registers, the product cannot spare any for what is fetched beside
  // what is ready: then one makes room for the other after it. Not where it adds to what is ready.
  constexpr bool kFetchesLate =
      kCells > 1 && kShape.weight_words() > 64 && !(has_whole_sums(kShape) && kPass == Pass::kForward);
  const RowStates& rows = args.rows;
  const int H = rows.H, d = blockIdx.y, m = blockIdx.z, tile_index = blockIdx.x / ctas;
  const int rank = kShape.transport == Transport::kLocal     ? 0
                   : kShape.transport == Transport::kCluster ? cluster_rank()
                                                             : blockIdx.x % ctas;
  const int first_unit = rank * Traffic::kUnits;
  // Elements of one gate's block in weights and operands: the next multiple of 16 bytes.
  const int gate_pitch = (H + Traffic::kVectorElements - 1) / Traffic::kVectorElements * Traffic::kVectorElements;
  const int warp = threadIdx.x / 32, k_split = warp % kShape.k_splits;
  const int part_of_k = in_register(k_split * kShape.chunks_per_warp * Traffic::kChunkStride);  // bytes to the warp's
  const SharedAddress smem = in_register(shared_address(shared_memory()));

  // First, while there are registers for many loads in flight.
  ProductOf<Math, kShape> product(smem + Smem::kWeights + warp * ProductOf<Math, kShape>::kSharedBytes);
  load_weight<Math, kShape>(product, &at<scalar_t>(args.weight_hh[d], m * int64_t{4} * H * gate_pitch), H, gate_pitch,
                            first_unit);

  const int first_row = tile_index * kBatchRows;
  const int batch_rows = rows.B - first_row < kBatchRows ? rows.B - first_row : kBatchRows;
  const int steps = steps_of_tile(rows, first_row, batch_rows, m);
  Traffic exchange;
  exchange.tile = {smem + Smem::kOperand,
                   smem + Smem::kBarriers,
                   smem + Smem::kPartials,
                   smem + Smem::kStage,
                   H,
                   first_unit,
                   batch_rows,
                   gate_pitch,
                   ctas,
                   steps,
                   nullptr,
                   0};
  if constexpr (kShape.transport == Transport::kGrid) {
    const int64_t first = int64_t{m * rows.D + d} * rows.T * rows.B + first_row;  // T * B may be more than packed rows
    exchange.tile.global = static_cast<scalar_t*>(args.exchange) + first * exchange.pitch();
    exchange.tile.global_stride = int64_t{rows.B} * exchange.pitch();
  } else {
    // Where nothing is ever published (beyond H, beyond B) the weights are zero, but zero times garbage may be NaN.
    // What no CTA sends is added as zeros, too.
    constexpr int kEnd = Traffic::kSumsBytes > 0 ? Smem::kStage : Smem::kPartials;
    for (int i = Smem::kOperand + threadIdx.x * kVectorBytes; i < kEnd; i += kThreads * kVectorBytes)
      store_shared128(smem + i, Vec4{});
    block_sync();
  }
  exchange.open();

  const Owned owned;
  const auto make_cell = [&](int e) {
    const int n = owned.row(e), u = first_unit + owned.unit(e);
    const bool exists = n < batch_rows && u < H;
    return Cell(args, d, first_row + n, u, m, exists);
  };
  // Number p in the order of running.
  const auto step_at = [&](int p) { return p >= 0 && p < steps ? step_of(rows, Cell::time(d, p, steps)) : Step{}; };
  typename Cell::Shared shared[Owned::kUnitsOwned];
#pragma unroll
  for (int e = 0; e < kCells; ++e)
    shared[Owned::unit_index(e)] = typename Cell::Shared(args, d, first_unit + owned.unit(e), m);
  Cell cells[kCells];
  typename Cell::Result results[kCells];
  const auto publish = [&](int s) {
    if (s >= steps) return;
    typename Traffic::Elements x;
#pragma unroll
    for (int e = 0; e < kCells; ++e)
#pragma unroll
      for (int q = 0; q < kShape.operands(); ++q) x[e][q] = cells[e].operand(q, results[e]);
    exchange.publish(s, x);
  };

  const auto store = [&](const Step& step) {
    const int64_t first = in_register(Cell::first_element(args, step));
#pragma unroll
    for (int e = 0; e < kCells; ++e) cells[e].store(args, step, first, results[e]);
    if (Cell::has_rest(args))  // the same for all threads
#pragma unroll
      for (int e = 0; e < kCells; ++e) cells[e].store_rest(args, step, results[e]);
  };

  // Those after `next` are needed for where `next` reads; asked for a position before that, in case they come from
  // memory.
  Step before = step_at(Cell::kLead - 1), now = step_at(Cell::kLead), next = step_at(Cell::kLead + 1),
       after = step_at(Cell::kLead + 2);
#pragma unroll
  for (int e = 0; e < kCells; ++e) cells[e] = make_cell(e);
#pragma unroll
  for (int e = 0; e < kCells; ++e) results[e] = cells[e].start(args, before, now, next);
  publish(0);
  store(before);

  const PartialSums<Math, kShape> partials(smem + Smem::kPartials);
  for (int s = 0; s < steps; ++s) {
    typename Cell::Ready ready[kCells];
    const Step later = step_at(s + Cell::kLead + 3);
    const auto fetch_resets = [&] {
      if (rows.reset)  // the same for all threads
#pragma unroll
        for (int e = 0; e < kCells; ++e) cells[e].prefetch_reset(args, next);
    };
    const auto use_and_fetch = [&] {
#pragma unroll
      for (int e = 0; e < kCells; ++e) ready[e] = cells[e].ready(args, now, shared[Owned::unit_index(e)]);
#pragma unroll
      for (int e = 0; e < kCells; ++e) cells[e].prefetch(args, next, after);
      if constexpr (kPass == Pass::kBackward) fetch_resets();
    };
    if constexpr (kPass == Pass::kForward) fetch_resets();
    if constexpr (!kFetchesLate) use_and_fetch();

    const SharedAddress operand = exchange.await(s) + part_of_k;
    add_products<Math, kShape>(
        product, exchange, s, operand, partials, [&](int e) -> auto& { return ready[e].sums; },
        [&] {
          if constexpr (kFetchesLate) use_and_fetch();
        });
#pragma unroll
    for (int e = 0; e < kCells; ++e) results[e] = cells[e].advance(before.t, now, ready[e]);
    if (rows.reset) {
      bool any = false;
#pragma unroll
      for (int e = 0; e < kCells; ++e) any |= cells[e].enters();
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
#pragma unroll
  for (int e = 0; e < kCells; ++e) cells[e].finish(args);
  exchange.close();
}

// The shape as an index, since nvcc's host stubs cannot name a template argument of class type.
template <class Math, int kShapeIndex, class Cell, class Args>
__global__ void __launch_bounds__(kThreads, 1) recurrence_kernel(const __grid_constant__ Args args, int ctas) {
  constexpr KernelShape kShape = kKernelShapes[kShapeIndex];
  if constexpr (kArch >= 10 * needed_capability(kShape.transport, Math::kArithmetic))
    run_recurrence<Math, kShape, Cell>(args, ctas);
}

}  // namespace fusedlstm::cuda
