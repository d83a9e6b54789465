// The few small things that the CUDA binding needs from torch.
#pragma once
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include "../layer_tensors.h"
#include "fallback.h"

namespace fusedlstm::gpu {

inline Tensor transposed(const Tensor& t) {
  return torch::stable::transpose(t, 0, 1);
}

inline Tensor zeros(const Tensor& like, const Sizes& sizes, ScalarType dtype) {
  Tensor t = new_tensor(like, sizes, dtype);
  torch::stable::zero_(t);
  return t;
}

inline cudaStream_t current_stream(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device(), &stream));
  return static_cast<cudaStream_t>(stream);
}

}  // namespace fusedlstm::gpu
