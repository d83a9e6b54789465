// The kernel of recurrences with norms that keeps weight_hh on the chip: a block has a batch row, a launch all its
// steps. What a step is stands in varied_forward.cuh, once for this kernel and for those of single steps.
#include "resident_product.cuh"
#include "varied_forward.cuh"

namespace fusedlstm::cuda {
namespace {

template <class Cell>
__device__ __forceinline__ void run_row(const VariedForwardArgs& args) {
  const int T = args.rows.T, H = args.rows.H, i = static_cast<int>(threadIdx.x);
  const ResidentSizes sizes{Cell::kSizes.gates, H};
  const int b = static_cast<int>(blockIdx.x), GH = static_cast<int>(sizes.rows());
  float* const shared = reinterpret_cast<float*>(shared_memory());
  float* const h = shared + sizes.operands_at();
  float* const operand = args.mask.data ? h + sizes.operand() : h;
  float* const sums = shared + sizes.sums_at();
  float* const from_input = shared + sizes.from_input_at();
  const ResidentProduct product(args.weight_hh, GH, H, static_cast<int>(sizes.shared_vectors()),
                                shared_address(shared + sizes.weights_at()));
  for (int k = i; k < 2 * static_cast<int>(sizes.operand()); k += static_cast<int>(blockDim.x)) h[k] = 0;
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

template <class Cell>
__global__ void __launch_bounds__(kResidentThreads, 1)
    varied_resident_kernel(const __grid_constant__ VariedForwardArgs args) {
  if constexpr (kArch / 10 >= kResidentCapability) run_row<Cell>(args);
}

template <class Cell>
cudaError_t launch_cell(const VariedForwardArgs& args, cudaStream_t stream) {
  const ResidentSizes sizes{Cell::kSizes.gates, args.rows.H};
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(args.rows.B));
  config.block = dim3(static_cast<unsigned>(sizes.threads()));
  config.smem_bytes = static_cast<size_t>(sizes.bytes());
  return launch(varied_resident_kernel<Cell>, config, stream, args);
}

}  // namespace

cudaError_t launch_varied_resident(const VariedForwardArgs& args, cudaStream_t stream) {
  return args.kind == VariedKind::kLstm ? launch_cell<VariedLstm>(args, stream) : launch_cell<NormedGru>(args, stream);
}

}  // namespace fusedlstm::cuda
