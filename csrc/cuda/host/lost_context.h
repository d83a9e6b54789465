// What an operator that fails says where the CUDA context of the process is lost.
//
// No torch.
#pragma once
#include <cuda_runtime_api.h>

#include <string>

namespace fusedlstm::cuda {

// Whether it is an error after which no CUDA call of the process succeeds any more: each returns it again.
bool is_context_lost(cudaError_t error);

// error: what the operator would have said. state: the CUDA error that every call returns. last_launched: the resident
// kernel that was launched last on the device, with its plan, or "". Kernels run after their launch, so that it may be
// that one, or another library's.
std::string lost_context_text(const std::string& error, cudaError_t state, const std::string& last_launched);

}  // namespace fusedlstm::cuda
