// Stands in for torch's CUDA library and the cuBLAS behind it, on the CPU: what csrc/cuda/binding/products.cpp calls.
// It is as strict as cuBLAS is about sizes, and remembers the math mode of the last product.
#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

enum Status { kSuccess = 0, kInvalidValue = 7, kNotSupported = 15 };
enum Type { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBFloat16 = 14 };
enum Compute { kIn32 = 68, kIn64 = 70, kByTf32 = 77 };

struct Handle {
  int math_mode = 3;  // as torch leaves it where torch.matmul may use TF32
  int mode_of_product = -1;
} handle;

double load(const void* data, int type, int64_t i) {
  switch (type) {
    case kFloat32:
      return static_cast<const float*>(data)[i];
    case kFloat64:
      return static_cast<const double*>(data)[i];
    case kFloat16:
      return static_cast<double>(static_cast<const _Float16*>(data)[i]);
    default: {
      const uint32_t bits = uint32_t{static_cast<const uint16_t*>(data)[i]} << 16;
      float value;
      std::memcpy(&value, &bits, 4);
      return value;
    }
  }
}

// Of bfloat16, values that it has exactly.
void store(void* data, int type, int64_t i, double x) {
  const float narrow = static_cast<float>(x);
  uint32_t bits;
  std::memcpy(&bits, &narrow, 4);
  if (type == kFloat32) static_cast<float*>(data)[i] = narrow;
  if (type == kFloat64) static_cast<double*>(data)[i] = x;
  if (type == kFloat16) static_cast<_Float16*>(data)[i] = static_cast<_Float16>(narrow);
  if (type == kBFloat16) static_cast<uint16_t*>(data)[i] = static_cast<uint16_t>(bits >> 16);
}

}  // namespace

extern "C" {

int torch_get_current_cuda_blas_handle(void** current) {
  *current = &handle;
  return 0;
}

int cublasGetMathMode(void* of, int* mode) {
  *mode = static_cast<Handle*>(of)->math_mode;
  return kSuccess;
}

int cublasSetMathMode(void* of, int mode) {
  static_cast<Handle*>(of)->math_mode = mode;
  return kSuccess;
}

int cublasGemmEx(void* of, int transposes_a, int transposes_b, int m, int n, int k, const void* alpha, const void* a,
                 int type_a, int lda, const void* b, int type_b, int ldb, const void* beta, void* c, int type_c,
                 int ldc, int compute, int algorithm) {
  static_cast<Handle*>(of)->mode_of_product = static_cast<Handle*>(of)->math_mode;
  if (lda < std::max(1, transposes_a ? k : m) || ldb < std::max(1, transposes_b ? n : k) || ldc < std::max(1, m) ||
      algorithm != -1)
    return kInvalidValue;
  const bool is_double = type_a == kFloat64, is_half = type_a == kFloat16 || type_a == kBFloat16;
  if (type_a != type_b || (type_c != type_a && !(is_half && type_c == kFloat32)) || (compute == kIn64) != is_double ||
      (compute == kByTf32 && type_a != kFloat32))
    return kNotSupported;
  const double by = load(alpha, is_double ? kFloat64 : kFloat32, 0),
               of_c = load(beta, is_double ? kFloat64 : kFloat32, 0);
  for (int64_t j = 0; j < n; ++j)
    for (int64_t i = 0; i < m; ++i) {
      double sum = 0;
      for (int64_t l = 0; l < k; ++l)
        sum += load(a, type_a, transposes_a ? l + i * lda : i + l * lda) *
               load(b, type_b, transposes_b ? j + l * ldb : l + j * ldb);
      const double before = of_c == 0 ? 0 : of_c * load(c, type_c, i + j * ldc);
      store(c, type_c, i + j * ldc, by * sum + before);
    }
  return kSuccess;
}

int stub_mode_of_product() {
  return handle.mode_of_product;
}
int stub_math_mode() {
  return handle.math_mode;
}
}
