// Tensors of the stable ABI: their sizes checked and told, and new or dense ones made.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <string>

#include "arguments.h"
#include "dtypes.h"
#include "sizes.h"

namespace fusedlstm {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Element types as PyTorch names them, and back.
inline ScalarType scalar_type_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat64:
      return ScalarType::Double;
    case Dtype::kBFloat16:
      return ScalarType::BFloat16;
    case Dtype::kFloat16:
      return ScalarType::Half;
    case Dtype::kFloat32:
      break;
  }
  return ScalarType::Float;
}

inline Dtype dtype_of(ScalarType dtype) {
  for (const Dtype own : {Dtype::kFloat64, Dtype::kBFloat16, Dtype::kFloat16})
    if (dtype == scalar_type_of(own)) return own;
  return Dtype::kFloat32;
}

// As Python has it behind `torch.`; those that nothing here takes are told by one word.
inline const char* name_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
    case ScalarType::Double:
    case ScalarType::BFloat16:
    case ScalarType::Half:
      return dtype_name(dtype_of(dtype));
    case ScalarType::Bool:
      return "bool";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    default:
      return "another";
  }
}

inline std::string to_string(const Sizes& sizes) {
  std::string s = "[";
  for (const int64_t size : sizes) s += (s.size() > 1 ? ", " : "") + std::to_string(size);
  return s + "]";
}

// A tensor that is asked, whoever owns it.
class TensorRef {
 public:
  TensorRef(const Tensor& t) : handle_(t.get()) {}
  TensorRef(const OwnedTensor& t) : handle_(t.get()) {}

  AtenTensorHandle get() const { return handle_; }
  int64_t dim() const { return asked<int64_t>(aoti_torch_get_dim); }
  int64_t numel() const { return asked<int64_t>(aoti_torch_get_numel); }
  bool is_contiguous() const { return asked<bool>(aoti_torch_is_contiguous); }
  void* data_ptr() const { return asked<void*>(aoti_torch_get_data_ptr); }
  int64_t* sizes() const { return asked<int64_t*>(aoti_torch_get_sizes); }  // the tensor's own

 private:
  AtenTensorHandle handle_;

  template <class T>
  T asked(AOTITorchError (*question)(AtenTensorHandle, T*)) const {
    T answer{};
    TORCH_ERROR_CODE_CHECK(question(handle_, &answer));
    return answer;
  }
};

inline std::string sizes_of(TensorRef t) {
  std::string s = "[";
  for (int64_t i = 0; i < t.dim(); ++i) s += (i ? ", " : "") + std::to_string(t.sizes()[i]);
  return s + "]";
}

inline bool has_sizes(TensorRef t, const Sizes& expected) {
  return t.dim() == expected.size() && std::equal(expected.begin(), expected.end(), t.sizes());
}

inline void check_sizes(TensorRef t, const Sizes& expected, const char* name) {
  STD_TORCH_CHECK(has_sizes(t, expected), "fusedlstm: expected ", name, " of size ", to_string(expected), ", got ",
                  sizes_of(t));
}

// Storages can be freed below their tensors, as sharding does with parameters that are not in use.
inline void check_memory(TensorRef t, const char* name) {
  int64_t bytes = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &bytes));
  STD_TORCH_CHECK(bytes > 0 || t.numel() == 0, "fusedlstm: expected ", name,
                  " with memory, got one whose storage was freed");
}

// A new tensor, not initialized; dtype and device as PyTorch codes them. Without memory for it the error has PyTorch's
// words: programs that try again with less look for them, and the package gives it PyTorch's type by them.
inline AtenTensorHandle allocate(const Sizes& sizes, const int64_t* strides, int32_t dtype, int32_t device_type,
                                 int32_t device_index) {
  AtenTensorHandle handle = nullptr;
  const auto status =
      aoti_torch_empty_strided(sizes.size(), sizes.begin(), strides, dtype, device_type, device_index, &handle);
  const bool is_cpu = device_type == aoti_torch_device_type_cpu();
  STD_TORCH_CHECK(status == TORCH_SUCCESS,
                  is_cpu ? "DefaultCPUAllocator: can't allocate memory: " : "CUDA out of memory. ",
                  "fusedlstm: expected memory for a tensor of size ", to_string(sizes), ", got none");
  return handle;
}

// A new contiguous tensor on the device of `like`, not initialized.
inline Tensor new_tensor(const Tensor& like, const Sizes& sizes, ScalarType dtype) {
  int64_t strides[5];
  int64_t stride = 1;
  for (int64_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= sizes.begin()[i] > 0 ? sizes.begin()[i] : 1;
  }
  int32_t device_type, device_index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  const auto code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  return Tensor(allocate(sizes, strides, code, device_type, device_index));
}

// The tensor itself if its last dimension has unit stride, else a contiguous copy.
inline Tensor unit_stride(const Tensor& t) {
  const int64_t last = t.dim() - 1;
  return last < 0 || t.size(last) <= 1 || t.stride(last) == 1 ? t : torch::stable::contiguous(t);
}

inline Tensor dense(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

// The tensor itself if it is contiguous but for its first `lead` dimensions, else a contiguous copy.
inline Tensor dense_after(int64_t lead, const Tensor& t) {
  if (t.is_contiguous()) return t;
  int64_t stride = 1;
  for (int64_t i = t.dim(); i-- > lead;) {
    if (t.size(i) != 1 && t.stride(i) != stride) return torch::stable::contiguous(t);
    stride *= t.size(i);
  }
  return lead > 0 ? t : torch::stable::contiguous(t);
}

// Of dtype and device as PyTorch codes them: to translate a dtype takes up to ten calls more, for each tensor.
struct Facts {
  int32_t dtype = 0, device_type = 0, device_index = 0;

  static Facts of(TensorRef t) {
    Facts facts;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &facts.dtype));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &facts.device_type));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(t.get(), &facts.device_index));
    return facts;
  }
};

// Checks the dtype of a tensor whose dtype does not follow from the input's; `expected` says which in words.
inline void check_dtype_is(const Tensor& t, ScalarType dtype, const char* expected) {
  STD_TORCH_CHECK(t.scalar_type() == dtype, "fusedlstm: expected ", expected, ", got ", name_of(t.scalar_type()));
}

// The name of a dtype that PyTorch codes so.
inline const char* name_of_code(int32_t dtype) {
  return name_of(torch::stable::detail::to<ScalarType>(torch::stable::detail::from(dtype)));
}

// Checks a dtype as PyTorch codes it.
inline void check_dtype(int32_t dtype, int32_t of_input, const char* name) {
  STD_TORCH_CHECK(dtype == of_input, "fusedlstm: expected ", name, " of the input's dtype, ", name_of_code(of_input),
                  ", got ", name_of_code(dtype));
}

}  // namespace fusedlstm
