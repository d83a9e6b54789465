// Matrix products by torch's cuBLAS, without torch's operators around them.
#pragma once
#include "cuda/host/view.h"

namespace fusedlstm::cuda {

// out = a b, or out += a b, of matrices on the current device and stream, as Host::multiply. It is nn.LSTM's switch
// that decides of TF32 (torch.backends.cudnn), not that of torch.matmul, and sums of 16-bit products are always in
// float32. False, and nothing done, where cuBLAS cannot be asked for it: then torch's operators are, and follow their
// switches.
bool multiply_by_cublas(const View& out, const View& a, const View& b, bool adds, bool allow_tf32);

}  // namespace fusedlstm::cuda
