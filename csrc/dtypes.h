// Element types: how a number is stored, and in what it is computed.
//
// Plain C++, includes neither torch nor CUDA. The 16-bit types are bit patterns without arithmetic, so that
// rounding to them is always written out: `to_acc` and `from_acc` (cuda/device/primitives.cuh) convert.
#pragma once
#include <cstddef>
#include <cstdint>

namespace fusedlstm {

enum class Dtype : uint8_t { kFloat32, kFloat64, kBFloat16, kFloat16 };
inline constexpr int kDtypes = 4;

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

constexpr size_t element_bytes(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32:
      return 4;
    case Dtype::kFloat64:
      return 8;
    case Dtype::kBFloat16:
      return 2;
    case Dtype::kFloat16:
      return 2;
  }
  return 0;
}

constexpr const char* dtype_name(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32:
      return "float32";
    case Dtype::kFloat64:
      return "float64";
    case Dtype::kBFloat16:
      return "bfloat16";
    case Dtype::kFloat16:
      return "float16";
  }
  return "unknown";
}

// The type that cell states are kept and sums are accumulated in.
template <class scalar_t>
struct ScalarTraits;
template <>
struct ScalarTraits<float> {
  using acc_t = float;
};
template <>
struct ScalarTraits<double> {
  using acc_t = double;
};
template <>
struct ScalarTraits<BFloat16> {
  using acc_t = float;
};
template <>
struct ScalarTraits<Float16> {
  using acc_t = float;
};

template <class scalar_t>
using AccOf = typename ScalarTraits<scalar_t>::acc_t;

// Calls f with a value of the dtype's scalar_t, and returns what it returns.
template <class F>
auto with_scalar(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::kFloat64:
      return f(double{});
    case Dtype::kBFloat16:
      return f(BFloat16{});
    case Dtype::kFloat16:
      return f(Float16{});
    case Dtype::kFloat32:
      break;
  }
  return f(float{});
}

}  // namespace fusedlstm
