// Second order of independent steps on the device: what is between the products (cells/steps.h).
//
// No torch.
#pragma once
#include <cuda_runtime_api.h>

#include "cells/all.h"
#include "cells/steps.h"
#include "dtypes.h"

namespace fusedlstm::cuda {

// Enqueues it; pointers are to device memory. dtype: float32 or float64.
cudaError_t launch_second_order(CellKind cell, Dtype dtype, const StepsArgs& args, cudaStream_t stream);

}  // namespace fusedlstm::cuda
