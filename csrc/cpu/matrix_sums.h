// Sums of matrix products and of rows, on the CPU.
//
// Products are PyTorch's, below its dispatcher: called from Python, each took as long as that of a small step. They
// accumulate 16-bit numbers in float32, and round a sum once for each product that is added to it.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <cstring>

#include "call/arguments.h"
#include "call/views.h"

namespace fusedlstm::cpu {

inline Tensor transposed(const Tensor& matrix) {
  return viewed(matrix, {matrix.size(1), matrix.size(0)}, {matrix.stride(1), matrix.stride(0)});
}
inline OptionalTensor transposed(const OptionalTensor& matrix) {
  return matrix ? OptionalTensor(transposed(*matrix)) : std::nullopt;
}

// The tensor itself where it has the dtype.
inline Tensor as_dtype(const Tensor& t, ScalarType dtype) {
  return t.scalar_type() == dtype ? t : torch::stable::to(t, dtype);
}
inline OptionalTensor as_dtype(const OptionalTensor& t, ScalarType dtype) {
  return t ? OptionalTensor(as_dtype(*t, dtype)) : std::nullopt;
}

inline Tensor zeros(const Tensor& like, const Sizes& sizes, ScalarType dtype) {
  Tensor t = new_tensor(like, sizes, dtype);
  std::memset(t.data_ptr(), 0, size_t(t.numel() * t.element_size()));
  return t;
}

// Adds a b to `sum`, which is a new tensor where it was none; nothing where a or b is none, for zeros.
inline void add_product(OptionalTensor& sum, const OptionalTensor& a, const OptionalTensor& b) {
  if (!a || !b) return;
  if (sum) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(sum->get(), sum->get(), a->get(), b->get(), 1, 1));
  } else {
    sum = new_tensor(*a, {a->size(0), b->size(1)}, a->scalar_type());
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(sum->get(), a->get(), b->get()));
  }
}

// Adds `count` columns of `from`, from `first` on, to those of `to` from `at` on. Both [N, ...] with dense rows; of one
// dimension, `from` is each of its rows. Of float32 or float64.
template <class T>
void add_columns(const Tensor& to, int64_t at, const Tensor& from, int64_t first, int64_t count) {
  T* sum = static_cast<T*>(to.data_ptr()) + at;
  const T* given = static_cast<const T*>(from.data_ptr()) + first;
  const int64_t stride = to.stride(0), given_stride = from.dim() > 1 ? from.stride(0) : 0;
  for (int64_t row = 0; row < to.size(0); ++row, sum += stride, given += given_stride)
    for (int64_t column = 0; column < count; ++column) sum[column] += given[column];
}
inline void add_columns(const Tensor& to, int64_t at, const Tensor& from, int64_t first, int64_t count) {
  return to.scalar_type() == ScalarType::Double ? add_columns<double>(to, at, from, first, count)
                                                : add_columns<float>(to, at, from, first, count);
}

// The sum of all rows.
inline Tensor sum_of_rows(const Tensor& rows) {
  const int64_t first[] = {0};
  return torch::stable::sum(rows, torch::headeronly::IntHeaderOnlyArrayRef(first, 1));
}

}  // namespace fusedlstm::cpu
