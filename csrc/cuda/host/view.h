// A tensor in device memory as the host code sees it: where it lies, and how.
//
// Plain C++. A value of its own, so that a row, a transpose or a member of it costs no call of anybody.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>

#include "dtypes.h"
#include "sizes.h"

namespace fusedlstm::cuda {

// Owns nothing: the memory must outlive it. Sizes and strides in elements.
struct View {
  static constexpr int kMostDimensions = 4;
  void* data = nullptr;   // null: there is no such tensor, or it has no elements
  void* owner = nullptr;  // by which the Host knows the memory that this is a part of
  Dtype dtype{};
  int dimensions = 0;
  int64_t sizes[kMostDimensions]{}, strides[kMostDimensions]{};

  View() = default;
  // Contiguous.
  View(void* data, void* owner, Dtype dtype, const Sizes& all)
      : data(data), owner(owner), dtype(dtype), dimensions(static_cast<int>(all.size())) {
    int64_t stride = 1;
    for (int i = dimensions; i-- > 0;) {
      sizes[i] = all.begin()[i];
      strides[i] = stride;
      stride *= sizes[i] > 0 ? sizes[i] : 1;
    }
  }

  Sizes shape() const { return {sizes, dimensions}; }
  int64_t count() const {
    int64_t product = 1;
    for (int i = 0; i < dimensions; ++i) product *= sizes[i];
    return product;
  }
  int64_t bytes() const { return count() * static_cast<int64_t>(element_bytes(dtype)); }

  bool is_contiguous() const {
    int64_t stride = 1;
    for (int i = dimensions; i-- > 0;) {
      if (sizes[i] == 0) return true;
      if (sizes[i] != 1 && strides[i] != stride) return false;
      stride *= sizes[i];
    }
    return true;
  }

  // Elements [first, first + count) of a dimension.
  View narrow(int dimension, int64_t first, int64_t count) const {
    View part = *this;
    if (data)
      part.data = static_cast<char*>(data) + first * strides[dimension] * static_cast<int64_t>(element_bytes(dtype));
    part.sizes[dimension] = count;
    return part;
  }
  // One element of the first dimension, which goes.
  View operator[](int64_t index) const {
    View part = narrow(0, index, 1);
    part.dimensions = dimensions - 1;
    for (int i = 0; i < part.dimensions; ++i) {
      part.sizes[i] = sizes[i + 1];
      part.strides[i] = strides[i + 1];
    }
    return part;
  }
  View transposed(int i = 0, int j = 1) const {
    View other = *this;
    std::swap(other.sizes[i], other.sizes[j]);
    std::swap(other.strides[i], other.strides[j]);
    return other;
  }
  // The same elements in other sizes; of contiguous views only.
  View as(const Sizes& other) const { return {data, owner, dtype, other}; }
};

}  // namespace fusedlstm::cuda
