// One batch row of a recurrence with variants, which is one block's: what both passes have in common.
//
// Unit u of the row belongs to thread u modulo the block's size in every phase of a launch, and so does element i of
// its gates' values where each is taken by itself: what threads tell each other are sums over the row, and those
// values.
#pragma once
#include <cmath>

#include "block_sums.cuh"
#include "cuda/host/varied_launch.h"
#include "rows.cuh"

namespace fusedlstm::cuda {

// Normalised values are (x - mean) * scale.
template <class acc_t>
struct RowNorm {
  acc_t mean, scale;
  __device__ __forceinline__ acc_t of(acc_t x) const { return (x - mean) * scale; }
};

template <class acc_t, class Cell>
struct VariedRow {
  static constexpr CellSizes kSizes = Cell::kSizes;
  static constexpr int kMostSums = 6;  // over the row, in a launch
  using Math = ActivationMath<acc_t>;

  const VariedArgs& a;
  const Cell cell;
  const RowClock clock;
  const int b, H;
  BlockSums<acc_t> sums;

  __device__ __forceinline__ VariedRow(const VariedArgs& args, int b)
      : a(args), cell(make_varied_cell<Cell>(args.is_relu)), clock(args.rows, 0, b, 0), b(b), H(args.rows.H) {}

  template <class Body>
  __device__ __forceinline__ void for_each_unit(Body body) const {
#pragma unroll 1  // a thread has one unit, or few
    for (int u = static_cast<int>(threadIdx.x); u < H; u += static_cast<int>(blockDim.x)) body(u);
  }

  // Of all gates' values, gate by gate; not those of a thread's own units.
  template <class Body>
  __device__ __forceinline__ void for_each_gate(Body body) const {
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < kSizes.gates * H; i += static_cast<int>(blockDim.x)) body(i);
  }

  // Element i of this row of an array [B, n].
  __device__ __forceinline__ acc_t& own(const void* rows, int n, int i) const {
    return at<acc_t>(rows, element(b, n, i));
  }
  // Element i of its row of time t in an array [N, n].
  __device__ __forceinline__ acc_t& of_step(const void* rows, int t, int n, int i) const {
    return at<acc_t>(rows, element(t * a.rows.B + b, n, i));  // rows are not packed: row_of would look at each access
  }
  __device__ __forceinline__ acc_t factor(const Factors& factors, int t, int u) const {
    const int64_t i = t * factors.step + b * factors.batch + u;
    return factors.are_bools ? acc_t(at<bool>(factors.data, i)) : at<acc_t>(factors.data, i);
  }
  static __device__ __forceinline__ acc_t parameter(const void* parameter, int i) { return at<acc_t>(parameter, i); }

  __device__ __forceinline__ void peepholes(int u, acc_t (&w)[kPeepholes]) const {
#pragma unroll
    for (int k = 0; k < kPeepholes; ++k)
      w[k] = kSizes.carried > 0 && a.weight_ch ? parameter(a.weight_ch, k * H + u) : 0;
  }

  // c as h sees it, from its normalised value.
  __device__ __forceinline__ acc_t seen(acc_t normed, int u) const {
    return normed * parameter(a.gain_c, u) + (a.bias_c ? parameter(a.bias_c, u) : acc_t(0));
  }

  // Whether a step's c is normalised.
  __device__ __forceinline__ bool norms_c() const { return kSizes.carried > 0 && a.gain_c; }
};

}  // namespace fusedlstm::cuda
