// The few tensor operations that the CUDA binding needs from torch, all into memory that the caller has allocated.
//
// The shims of one device stand here and nowhere else, since they are the part of torch's stable interface that is
// most likely to move. `.out` forms only: they see neither autocast nor autograd.
#pragma once
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>

#include <array>
#include <string>

#include "../layer_tensors.h"

namespace fusedlstm::gpu {

// out = a b. `out` has the dtype of a and b, or is float32 and they have 16 bits.
inline void multiply(const Tensor& out, const Tensor& a, const Tensor& b) {
  if (out.scalar_type() == a.scalar_type()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_mm_out(out.get(), a.get(), b.get()));
    return;
  }
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(a), from(b), from(out.scalar_type()), from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "dtype_out", stack.data(), TORCH_ABI_VERSION));
  (void)torch::stable::detail::to<Tensor>(stack[0]);  // owns a reference to `out`
}

// out += a b.
inline void multiply_add(const Tensor& out, const Tensor& a, const Tensor& b) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_addmm_out(out.get(), out.get(), a.get(), b.get(), 1.0, 1.0));
}

inline Tensor transposed(const Tensor& t) {
  return torch::stable::transpose(t, 0, 1);
}

inline Tensor zeros(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  Tensor t = new_tensor(like, sizes, dtype);
  torch::stable::zero_(t);
  return t;
}

inline cudaStream_t current_stream(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check(cudaError_t error, const char* what) {
  const bool no_image = error == cudaErrorNoKernelImageForDevice;
  STD_TORCH_CHECK(error == cudaSuccess, "fusedlstm: ", what, ": ", cudaGetErrorString(error),
                  no_image ? " (build with TORCH_CUDA_ARCH_LIST set to this device's compute capability)" : "");
}

}  // namespace fusedlstm::gpu
