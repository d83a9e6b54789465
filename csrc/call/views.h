// Tensors of the memory of others, made below PyTorch's dispatcher: as operators of Python, to and fro, they took as
// long as a short step.
#pragma once

#include "tensors.h"

namespace fusedlstm {

// The same memory in other dimensions, from an element on.
inline Tensor viewed(const Tensor& t, const Sizes& sizes, const Sizes& strides, int64_t first = 0) {
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch__reinterpret_tensor(t.get(), sizes.size(), sizes.begin(), strides.begin(), first, &handle));
  return Tensor(handle);
}

}  // namespace fusedlstm
