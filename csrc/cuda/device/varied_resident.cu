// The kernels of recurrences with variants that keep weight_hh on the chip: a block has a batch row, a launch all its
// steps. What a step is stands in varied_forward.cuh and varied_backward.cuh, once for these kernels and for those of
// single steps.
#include "resident_product.cuh"
#include "varied_backward.cuh"
#include "varied_forward.cuh"

namespace fusedlstm::cuda {
namespace {

[[maybe_unused]] __device__ __forceinline__ void clear(float* values, int64_t count) {
  for (int k = static_cast<int>(threadIdx.x); k < static_cast<int>(count); k += static_cast<int>(blockDim.x))
    values[k] = 0;
}

template <class Cell>
__device__ __forceinline__ void run_row(const VariedForwardArgs& args) {
  const int T = args.rows.T, H = args.rows.H, i = static_cast<int>(threadIdx.x);
  const ResidentForward sizes{{Cell::kSizes.gates, H}};
  const int b = static_cast<int>(blockIdx.x), GH = static_cast<int>(sizes.rows());
  float* const shared = reinterpret_cast<float*>(shared_memory());
  float* const h = shared + sizes.operands_at();
  float* const operand = args.mask.data ? h + sizes.operand() : h;
  float* const sums = shared + sizes.sums_at();
  float* const from_input = shared + sizes.from_input_at();
  const ResidentProduct product(
      i < GH ? H : 0, [&](int k) { return at<float>(args.weight_hh, i * H + k); },
      static_cast<int>(sizes.shared_vectors()), shared_address(shared + sizes.weights_at()));
  clear(h, 2 * sizes.operand());
  block_sync();

  VariedForward<float, Cell> row(args, b,
                                 {{h, shared + sizes.c_at()}, operand == h ? nullptr : operand, sums, from_input});
  row.start();
#pragma unroll 1
  for (int step = 0; step < T; ++step) {
    const int t = time_of(args.direction, step, T);
    row.enter(t);
    // Fetched before the product, which takes longer.
    const float input = i < GH ? at<float>(args.from_input, element(row_of(args.rows, t, b), GH, i)) : 0;
    block_sync();
    sums[i] = product.of(shared_address(operand));
    from_input[i] = input;
    block_sync();
    row.step(t);
  }
  row.leave();
}

// A column of one gate's rows is a thread's. Their parts of the product, one of each gate, are added up where the unit
// is that takes them.
template <class Cell>
__device__ __forceinline__ void run_row(const VariedBackwardArgs& args) {
  constexpr int kGates = Cell::kSizes.gates;
  const int T = args.rows.T, H = args.rows.H, i = static_cast<int>(threadIdx.x);
  const ResidentBackward sizes{{kGates, H}};
  const int pitch = static_cast<int>(sizes.operand());
  const bool has_column = i < kGates * H;
  const int gate = has_column ? i / H : 0, column = i - gate * H;
  float* const shared = reinterpret_cast<float*>(shared_memory());
  float* const d_states = shared + sizes.d_states_at();
  float* const d_sums = shared + sizes.d_sums_at();
  float* const parts = shared + sizes.parts_at();
  const ResidentProduct product(
      has_column ? H : 0, [&](int k) { return at<float>(args.weight_hh, (gate * H + k) * H + column); },
      static_cast<int>(sizes.shared_vectors()), shared_address(shared + sizes.weights_at()));
  clear(d_sums, kGates * sizes.operand());
  block_sync();

  VariedBackward<float, Cell, true> row(
      args, static_cast<int>(blockIdx.x),
      {{d_states, d_states + pitch}, d_sums, args.d_from_hidden ? shared + sizes.d_from_input_at() : d_sums, pitch});
  row.start();
#pragma unroll 1
  for (int step = T - 1; step >= 0; --step) {
    const int t = time_of(args.direction, step, T);
    row.step(t);
    row.keep(t);
    block_sync();
    parts[i] = product.of(shared_address(d_sums + gate * pitch));
    block_sync();
    row.leave(t, [&](int u) {
      float sum = parts[u];
#pragma unroll
      for (int q = 1; q < kGates; ++q) sum += parts[q * H + u];
      return sum;
    });
  }
  row.finish();
}

template <class Cell, class Args>
__global__ void __launch_bounds__(kResidentThreads, 1) varied_resident_kernel(const __grid_constant__ Args args) {
  if constexpr (kArch / 10 >= kResidentCapability) run_row<Cell>(args);
}

template <class Cell, class Args>
cudaError_t launch_cell(const Args& args, cudaStream_t stream) {
  using Sizes = std::conditional_t<std::is_same_v<Args, VariedForwardArgs>, ResidentForward, ResidentBackward>;
  const Sizes sizes{{Cell::kSizes.gates, args.rows.H}};
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(args.rows.B));
  config.block = dim3(static_cast<unsigned>(sizes.threads()));
  config.smem_bytes = static_cast<size_t>(sizes.bytes());
  return launch(varied_resident_kernel<Cell, Args>, config, stream, args);
}

template <class Args>
cudaError_t launch_resident(const Args& args, cudaStream_t stream) {
  return args.kind == VariedKind::kLstm ? launch_cell<VariedLstm>(args, stream) : launch_cell<NormedGru>(args, stream);
}

}  // namespace

cudaError_t launch_varied_resident(const VariedForwardArgs& args, cudaStream_t stream) {
  return launch_resident(args, stream);
}
cudaError_t launch_varied_resident(const VariedBackwardArgs& args, cudaStream_t stream) {
  return launch_resident(args, stream);
}

}  // namespace fusedlstm::cuda
