// Finds the compiled kernel of a plan's shape and launches it. One instantiation file per arithmetic.
#pragma once
#include <utility>

#include "cuda/host/launch_recurrence.h"
#include "recurrence.cuh"

namespace fusedlstm::cuda {

template <class Math, class Cell, int kIndex>
cudaError_t launch_shape(const Plan& plan, const typename Cell::Args& args, cudaStream_t stream) {
  constexpr KernelShape kShape = kKernelShapes[kIndex];
  LaunchConfig config;
  config.grid = dim3(plan.ctas_per_tile * plan.tiles, args.rows.D, args.rows.M);
  config.block = dim3(kThreads);
  config.smem_bytes = SmemLayout<Math, kShape>::kBytes;
  if constexpr (kShape.transport == Transport::kCluster) config.cluster = dim3(plan.ctas_per_tile);
  if constexpr (kShape.transport == Transport::kGrid) {
    config.cooperative = true;
    const cudaError_t error = cudaMemsetAsync(args.exchange, 0xFF, exchange_bytes(plan, args.rows), stream);
    if (error != cudaSuccess) return error;
  }
  return launch(recurrence_kernel<Math, kIndex, Cell, typename Cell::Args>, config, stream, args, plan.ctas_per_tile);
}

template <class Math, class Cell>
cudaError_t launch_matching(const Plan& plan, const typename Cell::Args& args, cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidConfiguration;
  const auto try_shape = [&]<int kIndex>() {
    if constexpr (kKernelShapes[kIndex].pass == Cell::kPass && is_compiled(kKernelShapes[kIndex], Math::kArithmetic))
      if (plan.shape == kKernelShapes[kIndex]) error = launch_shape<Math, Cell, kIndex>(plan, args, stream);
  };
  [&]<int... kIndices>(std::integer_sequence<int, kIndices...>) {
    (try_shape.template operator()<kIndices>(), ...);
  }(std::make_integer_sequence<int, static_cast<int>(kKernelShapes.size())>());
  return error;
}

}  // namespace fusedlstm::cuda

// Compiles all kernels of one arithmetic.
#define FUSEDLSTM_COMPILE_RECURRENCE(Math)                                                                  \
  namespace fusedlstm::cuda {                                                                               \
  template <>                                                                                               \
  cudaError_t launch_forward_with<Math>(const Plan& plan, const ForwardArgs& args, cudaStream_t stream) {   \
    return launch_matching<Math, ForwardCell<Math::scalar_t>>(plan, args, stream);                          \
  }                                                                                                         \
  template <>                                                                                               \
  cudaError_t launch_backward_with<Math>(const Plan& plan, const BackwardArgs& args, cudaStream_t stream) { \
    return launch_matching<Math, BackwardCell<Math::scalar_t>>(plan, args, stream);                         \
  }                                                                                                         \
  }
