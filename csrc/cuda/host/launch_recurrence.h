// The resident kernels' launchers per arithmetic, each compiled in a file of its own.
#pragma once
#include "launch.h"

namespace fusedlstm::cuda {

struct BFloat16Math;
struct Float16Math;
struct Tf32Math;
struct Float32Math;

// cudaErrorInvalidConfiguration if no kernel has the plan's shape.
template <class Math>
cudaError_t launch_forward_with(const Plan& plan, const ForwardArgs& args, cudaStream_t stream);
template <class Math>
cudaError_t launch_backward_with(const Plan& plan, const BackwardArgs& args, cudaStream_t stream);

}  // namespace fusedlstm::cuda
