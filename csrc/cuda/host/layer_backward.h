// The steps of a backward pass that a layer by itself and one of a stack have in common.
#pragma once
#include "layer_gradients.h"

namespace fusedlstm::cuda {

// What the kernels are told; what they write is in memory of p: `r` is where.
BackwardArgs backward_arguments(PreparedLayer& p, const Incoming& in, const Gradients& grads, BackwardRecurrence& r);

}  // namespace fusedlstm::cuda
