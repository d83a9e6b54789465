// The sizes of a tensor.
//
// Plain C++, includes neither torch nor CUDA.
#pragma once
#include <algorithm>
#include <cstdint>
#include <initializer_list>

namespace fusedlstm {

// Up to five sizes, without an allocation.
class Sizes {
 public:
  Sizes(std::initializer_list<int64_t> sizes) {
    for (const int64_t size : sizes) values[count++] = size;
  }
  // The same with one more in front.
  Sizes(int64_t first, const Sizes& others) : Sizes({first}) {
    for (const int64_t size : others) values[count++] = size;
  }
  Sizes(const int64_t* sizes, int64_t count) : count(count) { std::copy_n(sizes, count, values); }
  const int64_t* begin() const { return values; }
  const int64_t* end() const { return values + count; }
  int64_t size() const { return count; }

 private:
  int64_t values[5], count = 0;
};

}  // namespace fusedlstm
