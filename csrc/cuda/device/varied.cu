// The kernels of recurrences with variants: a block has a batch row, a launch one step of all rows.
#include "varied_backward.cuh"
#include "varied_forward.cuh"

namespace fusedlstm::cuda {
namespace {

constexpr int kMostThreads = 512;

template <class acc_t, class Cell>
__global__ void __launch_bounds__(kMostThreads)
    varied_forward_kernel(const __grid_constant__ VariedForwardArgs args, int step) {
  const int b = static_cast<int>(blockIdx.x), T = args.rows.T, H = args.rows.H, GH = Cell::kSizes.gates * H;
  const int t = time_of(args.direction, step, T);
  const auto own = [&](const void* rows, int width) { return rows ? &at<acc_t>(rows, element(b, width, 0)) : nullptr; };
  VariedForward<acc_t, Cell> row(
      args, b,
      {{own(args.last[0], H), own(args.last[1], H)},
       own(args.operand, H),
       own(args.sums, GH),
       step < 0 ? nullptr : &at<acc_t>(args.from_input, element(row_of(args.rows, t, b), GH, 0))});
  if (step < 0)
    row.start();
  else
    row.step(t);
  if (step + 1 < T) row.enter(time_of(args.direction, step + 1, T));
}

template <class acc_t, class Cell>
__global__ void __launch_bounds__(kMostThreads)
    varied_backward_kernel(const __grid_constant__ VariedBackwardArgs args, int step) {
  const int b = static_cast<int>(blockIdx.x), T = args.rows.T, H = args.rows.H, GH = Cell::kSizes.gates * H;
  const int t = time_of(args.direction, step, T);
  const auto own = [&](const void* rows) { return rows ? &at<acc_t>(rows, element(b, H, 0)) : nullptr; };
  const auto of_step = [&](void* rows) {
    return step < 0 ? nullptr : &at<acc_t>(rows, element(row_of(args.rows, t, b), GH, 0));
  };
  VariedBackward<acc_t, Cell, false> row(args, b,
                                         {{own(args.d_initial[0]), own(args.d_initial[1])},
                                          of_step(args.d_from_hidden ? args.d_from_hidden : args.d_from_input),
                                          of_step(args.d_from_input),
                                          H});
  if (step + 1 < T)
    row.leave(time_of(args.direction, step + 1, T), [&](int u) { return own(args.product)[u]; });
  else
    row.start();
  if (step >= 0) row.step(t);
}

// Calls f with a value of the accumulation dtype and one of the varied cell.
template <class F>
cudaError_t with_types(const VariedArgs& args, F f) {
  const auto with_cell = [&](auto acc) {
    switch (args.kind) {
      case VariedKind::kGru:
        return f(acc, Unvaried<Gru>{});
      case VariedKind::kRnn:
        return f(acc, Unvaried<Rnn>{});
      case VariedKind::kNormedGru:
        return f(acc, NormedGru{});
      case VariedKind::kLstm:
        break;
    }
    return f(acc, VariedLstm{});
  };
  return args.dtype == Dtype::kFloat64 ? with_cell(double{}) : with_cell(float{});
}

template <class acc_t, class Cell>
LaunchConfig one_block_a_row(const RowStates& rows) {
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(rows.B));
  config.block = dim3(static_cast<unsigned>((std::min(rows.H, kMostThreads) + 31) / 32 * 32));
  config.smem_bytes = BlockSums<acc_t>::bytes(static_cast<int>(config.block.x), VariedRow<acc_t, Cell>::kMostSums);
  return config;
}

}  // namespace

cudaError_t launch_varied_forward(const VariedForwardArgs& args, int64_t step, cudaStream_t stream) {
  return with_types(args, [&]<class acc_t, class Cell>(acc_t, Cell) {
    return launch(varied_forward_kernel<acc_t, Cell>, one_block_a_row<acc_t, Cell>(args.rows), stream, args, step);
  });
}

cudaError_t launch_varied_backward(const VariedBackwardArgs& args, int64_t step, cudaStream_t stream) {
  return with_types(args, [&]<class acc_t, class Cell>(acc_t, Cell) {
    return launch(varied_backward_kernel<acc_t, Cell>, one_block_a_row<acc_t, Cell>(args.rows), stream, args, step);
  });
}

}  // namespace fusedlstm::cuda
