// What an operator that fails says where the CUDA context of the process is lost.
//
// No torch.
#pragma once
#include <cuda_runtime_api.h>

#include <string>

namespace fusedlstm::cuda {

// Whether it is an error after which no CUDA call of the process succeeds any more: each returns it again.
bool is_context_lost(cudaError_t error);

// What was launched last on a device; "" for what was not. Kernels run after their launch, so that it may be one of
// these that failed, or another library's.
struct LastLaunched {
  std::string resident;  // a resident kernel, with its plan
  std::string varied;    // a kernel with variants, if that was later
};

// error: what the operator would have said. state: the CUDA error that every call returns.
std::string lost_context_text(const std::string& error, cudaError_t state, const LastLaunched& last);

}  // namespace fusedlstm::cuda
