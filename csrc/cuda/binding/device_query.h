// The planner's view of the GPUs of this machine.
#pragma once
#include <cuda_runtime_api.h>

#include "cuda/host/plan.h"

namespace fusedlstm::cuda {

// Limits of CUDA device `ordinal`, asked from the driver once. The device must be the current one.
cudaError_t query_device(int ordinal, Device& device);

}  // namespace fusedlstm::cuda
