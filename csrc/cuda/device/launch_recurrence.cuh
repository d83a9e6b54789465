// Launches the kernel of a plan's shape: the table of an arithmetic, which each of the instantiation files defines.
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
  const cudaError_t error = TransportOf<Math, kShape>::prepare_launch(config, plan, args.rows, args.exchange, stream);
  if (error != cudaSuccess) return error;
  return launch(recurrence_kernel<Math, kIndex, Cell, typename Cell::Args>, config, stream, args, plan.ctas_per_tile);
}

template <class Math, class Cell>
constexpr ShapeLaunchers<typename Cell::Args> shape_launchers() {
  ShapeLaunchers<typename Cell::Args> launchers{};
  const auto add = [&]<int kIndex>() {
    if constexpr (kKernelShapes[kIndex].pass == Cell::kPass && is_compiled(kKernelShapes[kIndex], Math::kArithmetic))
      launchers[kIndex] = launch_shape<Math, Cell, kIndex>;
  };
  [&]<int... kIndices>(std::integer_sequence<int, kIndices...>) {
    (add.template operator()<kIndices>(), ...);
  }(std::make_integer_sequence<int, static_cast<int>(kKernelShapes.size())>());
  return launchers;
}

// Compiles all kernels of one arithmetic.
template <class Math>
constexpr Launchers launchers() {
  return {shape_launchers<Math, ForwardCell<typename Math::scalar_t>>(),
          shape_launchers<Math, BackwardCell<typename Math::scalar_t>>()};
}

}  // namespace fusedlstm::cuda
