// The large matrix products, into memory that the caller has allocated.
#pragma once
#include "../layer_tensors.h"

namespace fusedlstm::gpu {

// out = a b, or out += a b. `out` has the dtype of a and b, or is float32 and they have 16 bits (no += then).
// allow_tf32: for float32. It is nn.LSTM's switch that decides (torch.backends.cudnn), not that of torch.matmul.
void multiply(const Tensor& out, const Tensor& a, const Tensor& b, bool allow_tf32);
void multiply_add(const Tensor& out, const Tensor& a, const Tensor& b, bool allow_tf32);

}  // namespace fusedlstm::gpu
