// The resident kernels' launchers, those of each arithmetic compiled in a file of its own.
#pragma once
#include <array>

#include "kernel_shapes.h"
#include "launch.h"

namespace fusedlstm::cuda {

// In the order of kKernelShapes; null where there is no kernel of that shape for the arithmetic and the pass.
template <class Args>
using ShapeLaunchers = std::array<cudaError_t (*)(const Plan&, const Args&, cudaStream_t), kKernelShapes.size()>;

struct Launchers {
  ShapeLaunchers<ForwardArgs> forward;
  ShapeLaunchers<BackwardArgs> backward;
};

extern const Launchers kBFloat16Launchers, kFloat16Launchers, kTf32Launchers, kFloat32Launchers;

}  // namespace fusedlstm::cuda
