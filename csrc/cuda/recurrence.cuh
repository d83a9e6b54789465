// The resident kernel: all time steps of one layer in one launch, W_hh in registers and shared memory from the first to
// the last.
//
//   One CTA owns `units` hidden units of a tile of the batch: their weight rows, their state, their outputs. The CTAs
//   of a tile (1, a cluster, or part of the grid) together hold W_hh once. blockIdx.y is the direction and
//   blockIdx.z the member of an ensemble.
//   One warp multiplies a share of the rows with a share of K; one thread owns, for the whole sequence, the state of
//   pairs of one unit, threadIdx.x % units, and batch rows threadIdx.x / units + e * (256 / units): evenly spaced, as
//   then are all their indices.
//   Synchronisation: the exchange makes operand s readable; one barrier of the CTA per position separates the partial
//   sums' writers from their readers. They have two buffers, so that nobody overwrites sums still being read: whoever
//   writes those of position s + 2 has passed the barrier of s + 1, which their reader reached after reading.
#pragma once
#include <algorithm>

#include "cells.cuh"
#include "exchange.cuh"
#include "kernel_shapes.h"

namespace fusedlstm::gpu {

inline constexpr int kThreads = KernelShape::kWarps * 32;

// Shared memory of a CTA, in bytes from its start.
template <class Math, KernelShape kShape, int kSums>
struct SmemLayout {
  using Traffic = Exchange<Math, kShape>;
  static constexpr int kBarriers = 0;
  static constexpr int kOperand = 128;
  static constexpr int kPartials = kOperand + Traffic::kBuffers * Traffic::kOperandBytes;
  // Partial sums: float [2 buffers][k_splits][batch row][unit][sum], 4 floats of padding a batch row against bank
  // conflicts between the rows 2t of a warp.
  static constexpr int kPartialsRow = (kSums * kShape.units() + 4) * 4;
  static constexpr int kPartialsSplit = kShape.batch_rows() * kPartialsRow;
  static constexpr int kPartialsBuffer = kShape.k_splits * kPartialsSplit;
  static constexpr int kStage = kPartials + 2 * kPartialsBuffer;
  static constexpr int kWeights = kStage + kThreads * Traffic::kElementBytes;
  static constexpr int kBytes = kWeights + kShape.shared_weight_bytes();
  static_assert(kBytes == smem_bytes(kShape, Math::kArithmetic), "the planner counts otherwise");
};

// Row r of the lane's group g: unit of the CTA that it belongs to, and the gate of that unit (forward only).
template <KernelShape kShape>
__device__ __forceinline__ int unit_of_row(int r, int row_warp, int g) {
  constexpr int kRowsPerUnit = kShape.pass == Pass::kForward ? 4 : 1;
  return (row_warp * (kShape.rows_per_lane / kRowsPerUnit) + r / kRowsPerUnit) * 8 + g;
}

template <class Math, KernelShape kShape>
using ProductOf = Product<Math, kShape.rows_per_lane, kShape.chunks_per_warp, kShape.shared_chunks>;

template <class Math, KernelShape kShape>
__device__ __forceinline__ void load_weight(ProductOf<Math, kShape>& product, const void* weight, int64_t H,
                                            int64_t pitch, int first_unit) {
  using Layout = ExchangeLayout<Math, kShape>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int row_warp = warp / kShape.k_splits, k_split = warp % kShape.k_splits;
#pragma unroll
  for (int r = 0; r < kShape.rows_per_lane; r += 2)
#pragma unroll
    for (int c = 0; c < kShape.chunks_per_warp; ++c) {
      const int64_t k = (k_split * kShape.chunks_per_warp + c) * Layout::kChunkElements + t * Layout::kVectorElements;
      Vec4 rows[2] = {};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int64_t unit = first_unit + unit_of_row<kShape>(r + i, row_warp, g);
        const int64_t row = kShape.pass == Pass::kForward ? (r + i) % 4 * H + unit : unit;
        if (unit < H && k < pitch)
          rows[i] = load_constant128(static_cast<const typename Math::scalar_t*>(weight) + row * pitch + k);
      }
      product.set_weight(r, c, {Math::operand(rows[0]), Math::operand(rows[1])});
    }
}

// The warp's partial sums of 8 batch rows into its buffer.
template <class Math, KernelShape kShape, int kSums>
__device__ __forceinline__ void store_partials(SharedAddress buffer, int first_row,
                                               const float (&acc)[kShape.rows_per_lane][2]) {
  using Smem = SmemLayout<Math, kShape, kSums>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int row_warp = warp / kShape.k_splits, k_split = warp % kShape.k_splits;
#pragma unroll
  for (int r = 0; r < kShape.rows_per_lane; r += kSums)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const SharedAddress to = buffer + k_split * Smem::kPartialsSplit + (first_row + 2 * t + e) * Smem::kPartialsRow +
                               unit_of_row<kShape>(r, row_warp, g) * kSums * 4;
      if constexpr (kSums == 4)
        store_shared128(to, Vec4{float_bits(acc[r][e]), float_bits(acc[r + 1][e]), float_bits(acc[r + 2][e]),
                                 float_bits(acc[r + 3][e])});
      else
        store_shared32(to, float_bits(acc[r][e]));
    }
}

// Sums of one (unit, batch row) over the warps that shared K, in fixed order.
template <class Math, KernelShape kShape, int kSums>
__device__ __forceinline__ void sum_partials(SharedAddress buffer, int unit, int n, float (&sums)[kSums]) {
  using Smem = SmemLayout<Math, kShape, kSums>;
#pragma unroll
  for (int k_split = 0; k_split < kShape.k_splits; ++k_split) {
    const auto add = [&](int q, uint32_t bits) {
      sums[q] = k_split == 0 ? bits_float(bits) : sums[q] + bits_float(bits);
    };
    const SharedAddress from = buffer + k_split * Smem::kPartialsSplit + n * Smem::kPartialsRow + unit * kSums * 4;
    if constexpr (kSums == 4) {
      const Vec4 v = load_shared128(from);
#pragma unroll
      for (int q = 0; q < 4; ++q) add(q, v.w[q]);
    } else {
      add(0, load_shared32(from));
    }
  }
}

// The bits of an element as it is published: never all ones in a word, which GRID takes for "not written yet". Only a
// NaN that came in from outside can have them; conversions to 16 bits make NaNs canonical.
__device__ __forceinline__ uint32_t published(float x) {
  return float_bits(x) == ~0u ? 0x7FFFFFFFu : float_bits(x);
}
__device__ __forceinline__ uint32_t published(BFloat16 x) {
  return x.bits;
}
__device__ __forceinline__ uint32_t published(Float16 x) {
  return x.bits;
}

// A warp's 32 elements, one a lane, in vectors of 16 bytes: lane l gets vector l % kVectors. `stage` has room for the
// elements of all threads of the CTA.
template <class scalar_t>
__device__ __forceinline__ Vec4 gather_vector(SharedAddress stage, scalar_t x) {
  constexpr int kBytes = sizeof(scalar_t), kVectors = 32 * kBytes / kVectorBytes;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if constexpr (kBytes == 2)
    store_shared16(stage + threadIdx.x * 2, static_cast<uint16_t>(published(x)));
  else
    store_shared32(stage + threadIdx.x * 4, published(x));
  warp_sync();
  const Vec4 v = load_shared128(stage + warp * 32 * kBytes + lane % kVectors * kVectorBytes);
  warp_sync();  // before the stage is used again
  return v;
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
  using Smem = SmemLayout<Math, kShape, Cell::kSums>;
  using Traffic = Exchange<Math, kShape>;
  constexpr int kUnits = kShape.units(), kBatchRows = kShape.batch_rows();
  static_assert(kThreads % kUnits == 0, "a thread has one unit");
  constexpr int kRowsApart = kThreads / kUnits, kPairs = (kBatchRows + kRowsApart - 1) / kRowsApart;
  constexpr bool kAllOwnPairs = kBatchRows % kRowsApart == 0;
  const RowStates& rows = args.rows;
  const int H = rows.H, d = blockIdx.y, tile_index = blockIdx.x / ctas;
  const int rank = kShape.transport == Transport::kLocal     ? 0
                   : kShape.transport == Transport::kCluster ? cluster_rank()
                                                             : blockIdx.x % ctas;
  const int m = blockIdx.z;
  const int first_unit = rank * kUnits;
  const int first_row = tile_index * kBatchRows;
  const int batch_rows = rows.B - first_row < kBatchRows ? rows.B - first_row : kBatchRows;
  const int steps = steps_of_tile(rows, first_row, batch_rows, m);
  // Elements of one gate's block in weights and operands: the next multiple of 16 bytes.
  const int gate_pitch = (H + Traffic::kVectorElements - 1) / Traffic::kVectorElements * Traffic::kVectorElements;
  const int pitch = Cell::kOperands * gate_pitch;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, k_split = warp % kShape.k_splits;
  const SharedAddress smem = shared_address(shared_memory());

  Traffic exchange;
  exchange.tile = {smem + Smem::kOperand, smem + Smem::kBarriers, batch_rows, pitch, ctas, steps, nullptr, 0};
  if constexpr (kShape.transport == Transport::kGrid) {
    const int64_t first = int64_t{m * rows.D + d} * rows.T * rows.B + first_row;  // T * B may be more than packed rows
    exchange.tile.global = static_cast<scalar_t*>(args.exchange) + first * pitch;
    exchange.tile.global_stride = int64_t{rows.B} * pitch;
  } else {
    // Where nothing is ever published (beyond H, beyond B) the weights are zero, but zero times garbage may be NaN.
    for (int i = threadIdx.x * kVectorBytes; i < Traffic::kBuffers * Traffic::kOperandBytes;
         i += kThreads * kVectorBytes)
      store_shared128(smem + Smem::kOperand + i, Vec4{});
    block_sync();
  }
  exchange.open();

  ProductOf<Math, kShape> product;
  product.shared = smem + Smem::kWeights + warp * ProductOf<Math, kShape>::kSharedBytes;
  load_weight<Math, kShape>(product, &at<scalar_t>(args.weight_hh[d], m * int64_t{4} * H * gate_pitch), H, pitch,
                            first_unit);

  const int own_unit = threadIdx.x % kUnits, own_row = threadIdx.x / kUnits;
  // Of the tile, whether it exists or not. Threads beyond the last pair of a small tile own none.
  const auto is_pair = [&](int e) { return kAllOwnPairs || own_row + e * kRowsApart < kBatchRows; };
  const auto make_cell = [&](int e) {
    const int n = own_row + e * kRowsApart, u = first_unit + own_unit;
    const bool exists = n < batch_rows && u < H;
    return Cell(args, d, first_row + n, u, m, exists);
  };
  // Number p in the order of running.
  const auto time_at = [&](int p) { return p >= 0 && p < steps ? Cell::time(d, p, steps) : kNoTime; };
  const auto step_at = [&](int p) { return time_at(p) == kNoTime ? Step{} : step_of(args, d, m, time_at(p)); };
  // Position s of all pairs. The lane sends a vector of the units of one batch row; whole warps beyond the last pair
  // have nothing to send.
  constexpr int kVectors = 32 / Traffic::kVectorElements;
  const unsigned sent = threadIdx.x / 32 * 32 + lane % kVectors * Traffic::kVectorElements;
  const int sent_unit = first_unit + sent % kUnits, sent_row = sent / kUnits;
  const auto publish = [&](int s, int e, const Cell& cell) {
    if (s >= steps || (!kAllOwnPairs && warp * 32 / kUnits + e * kRowsApart >= kBatchRows)) return;
    const int n = sent_row + e * kRowsApart;
#pragma unroll
    for (int q = 0; q < Cell::kOperands; ++q) {
      const Vec4 v = Math::operand(gather_vector(smem + Smem::kStage, cell.operand(q)));
      if (n < batch_rows && sent_unit < gate_pitch)
        exchange.publish(s, q * gate_pitch + sent_unit, n, lane / kVectors, v);
    }
  };

  const Step before = step_at(Cell::kLead - 1);
  Step now = step_at(Cell::kLead);
  Cell cells[kPairs];
#pragma unroll
  for (int e = 0; e < kPairs; ++e) cells[e] = make_cell(e);  // at once, so that the compiler sees what they share
#pragma unroll
  for (int e = 0; e < kPairs; ++e) {
    cells[e].start(args, before, now);
    publish(0, e, cells[e]);
    cells[e].store(args, before, {});
  }

  for (int s = 0; s < steps; ++s) {
    const SharedAddress operand = exchange.await(s) + k_split * kShape.chunks_per_warp * Traffic::kChunkStride;
    const SharedAddress partials = smem + Smem::kPartials + s % 2 * Smem::kPartialsBuffer;
#pragma unroll 1  // interleaving the tiles would need registers that the weights have
    for (int n = 0; n < kBatchRows; n += 8) {
      float acc[kShape.rows_per_lane][2];
      product.multiply(operand + n * kChunkBytes, Traffic::kChunkStride, acc);
      store_partials<Math, kShape, Cell::kSums>(partials, n, acc);
    }
    const Step next = step_at(s + Cell::kLead + 1);
    block_sync();
#pragma unroll
    for (int e = 0; e < kPairs; ++e) {
      typename Cell::Result result;
      if (is_pair(e)) {
        float sums[Cell::kSums];
        sum_partials<Math, kShape, Cell::kSums>(partials, own_unit, own_row + e * kRowsApart, sums);
        cells[e].advance(args, time_at(s + Cell::kLead - 1), now, next, sums, result);
      }
      publish(s + 1, e, cells[e]);
      cells[e].store(args, now, result);
    }
#pragma unroll
    for (int e = 0; e < kPairs; ++e) cells[e].prefetch(args, next);
    now = next;
  }
#pragma unroll
  for (int e = 0; e < kPairs; ++e) cells[e].finish(args);
  exchange.close();
}

// The shape as an index, since nvcc's host stubs cannot name a template argument of class type.
template <class Math, int kShapeIndex, class Cell, class Args>
__global__ void __launch_bounds__(kThreads, 1) recurrence_kernel(const __grid_constant__ Args args, int ctas) {
  constexpr KernelShape kShape = kKernelShapes[kShapeIndex];
  if constexpr (kArch >= 10 * needed_capability(kShape.transport, Math::kArithmetic))
    run_recurrence<Math, kShape, Cell>(args, ctas);
}

}  // namespace fusedlstm::gpu
