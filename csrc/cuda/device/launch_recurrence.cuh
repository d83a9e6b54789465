// Launches the kernel of a plan's shape: the table of an arithmetic, which each of the instantiation files defines.
#pragma once
#include <utility>

#include "cuda/host/launch_recurrence.h"
#include "recurrence.cuh"

namespace fusedlstm::cuda {

template <class Math, KernelShape kShape>
using CellOfShape = std::conditional_t<kShape.pass == Pass::kForward,
                                       ForwardCell<typename Math::scalar_t, typename CellOf<kShape.cell>::type>,
                                       BackwardCell<typename Math::scalar_t, typename CellOf<kShape.cell>::type>>;

template <class Math, int kIndex, class Args>
cudaError_t launch_shape(const Plan& plan, const Args& args, cudaStream_t stream) {
  constexpr KernelShape kShape = kKernelShapes[kIndex];
  LaunchConfig config;
  config.grid = dim3(plan.ctas_per_tile * plan.tiles, args.rows.D, args.rows.M);
  config.block = dim3(kThreads);
  config.smem_bytes = static_cast<size_t>(plan.smem_bytes);
  const cudaError_t error = TransportOf<Math, kShape>::prepare_launch(config, plan, args.rows, args.exchange, stream);
  if (error != cudaSuccess) return error;
  return launch(recurrence_kernel<Math, kIndex, CellOfShape<Math, kShape>, Args>, config, stream, args,
                plan.ctas_per_tile);
}

template <class Math, Pass kPass, class Args>
constexpr ShapeLaunchers<Args> shape_launchers() {
  ShapeLaunchers<Args> launchers{};
  const auto add = [&]<int kIndex>() {
    if constexpr (kKernelShapes[kIndex].pass == kPass && is_compiled(kKernelShapes[kIndex], Math::kArithmetic))
      launchers[kIndex] = launch_shape<Math, kIndex, Args>;
  };
  [&]<int... kIndices>(std::integer_sequence<int, kIndices...>) {
    (add.template operator()<kIndices>(), ...);
  }(std::make_integer_sequence<int, static_cast<int>(kKernelShapes.size())>());
  return launchers;
}

// Compiles all kernels of one arithmetic.
template <class Math>
constexpr Launchers launchers() {
  return {shape_launchers<Math, Pass::kForward, ForwardArgs>(), shape_launchers<Math, Pass::kBackward, BackwardArgs>()};
}

}  // namespace fusedlstm::cuda
