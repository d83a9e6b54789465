// float32 matrix products by torch's cuBLAS, with a switch of their own for TF32.
#pragma once
#include "cuda/host/view.h"

namespace fusedlstm::cuda {

// out = a b, or out += a b, of float32 matrices on the current device and stream. It is nn.LSTM's switch that decides
// of TF32 (torch.backends.cudnn), not that of torch.matmul. False, and nothing done, where cuBLAS cannot be asked for
// it, or the dtype is another: then torch's operators are, and follow their switch.
bool multiply_float32(const View& out, const View& a, const View& b, bool adds, bool allow_tf32);

}  // namespace fusedlstm::cuda
