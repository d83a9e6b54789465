// Second order of independent steps: one thread for each element; nothing is shared between threads.
#include "cuda/host/second_order.h"
#include "rows.cuh"

namespace fusedlstm::cuda {
namespace {

constexpr int kBlock = 256;

template <class acc_t, class Equations>
__global__ void second_order_kernel(const __grid_constant__ StepsArgs args) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x, H = args.hidden;
  if (i >= args.rows * H) return;
  const int64_t row = i / H, u = i % H;
  second_order_of_element<ActivationMath<acc_t>, acc_t>(
      make_cell<Equations>(args.is_relu), args,
      [&](const void* from, int width, int part) {
        return from ? at<const acc_t>(from, (row * width + part) * H + u) : acc_t(0);
      },
      [&](void* to, acc_t v, int width, int part) {
        if (to) at<acc_t>(to, (row * width + part) * H + u) = v;
      });
}

template <class Equations>
cudaError_t launch_of_cell(Dtype dtype, const StepsArgs& args, cudaStream_t stream) {
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>((args.rows * args.hidden + kBlock - 1) / kBlock));
  config.block = dim3(kBlock);
  if (dtype == Dtype::kFloat64) return launch(second_order_kernel<double, Equations>, config, stream, args);
  return launch(second_order_kernel<float, Equations>, config, stream, args);
}

}  // namespace

cudaError_t launch_second_order(CellKind cell, Dtype dtype, const StepsArgs& args, cudaStream_t stream) {
  if (args.rows * args.hidden == 0) return cudaSuccess;
  switch (cell) {
    case CellKind::kGru:
      return launch_of_cell<Gru>(dtype, args, stream);
    case CellKind::kRnn:
      return launch_of_cell<Rnn>(dtype, args, stream);
    case CellKind::kLstm:
      break;
  }
  return launch_of_cell<Lstm>(dtype, args, stream);
}

}  // namespace fusedlstm::cuda
