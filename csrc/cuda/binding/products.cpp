#include "products.h"

#include <dlfcn.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/util/shim_utils.h>

#include <array>
#include <limits>

#include "cuda/host/gemm.h"

namespace fusedlstm::cuda {
namespace {

// torch's operators take TF32 from a switch of the whole process that is torch.matmul's. So float32 goes to cuBLAS,
// with torch's own handle: it belongs to this thread, device and stream, has torch's workspace, and can be captured.
struct Cublas {
  static constexpr int kNoTranspose = 0, kTranspose = 1;         // cublasOperation_t
  static constexpr int kDefaultMath = 0, kTf32TensorOpMath = 3;  // cublasMath_t
  int (*get_math_mode)(void* handle, int* mode) = nullptr;       // cublasGetMathMode
  int (*set_math_mode)(void* handle, int mode) = nullptr;        // cublasSetMathMode
  int (*sgemm)(void* handle, int transpose_a, int transpose_b,   // cublasSgemm
               int m, int n, int k, const float* alpha, const float* a, int lda, const float* b, int ldb,
               const float* beta, float* c, int ldc) = nullptr;

  bool is_complete() const { return get_math_mode && set_math_mode && sgemm; }
};

template <class F>
void find_function(void* library, const char* name, F& function) {
  function = reinterpret_cast<F>(dlsym(library, name));
}

// The cuBLAS that torch is linked to. Searched through torch, so that no version of it is named here and building needs
// none. Incomplete where torch contains cuBLAS instead of loading it.
const Cublas& cublas() {
  static const Cublas functions = [] {
    Cublas found;
    if (void* torch = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD)) {
      find_function(torch, "cublasGetMathMode", found.get_math_mode);
      find_function(torch, "cublasSetMathMode", found.set_math_mode);
      find_function(torch, "cublasSgemm_v2", found.sgemm);
    }
    return found;
  }();
  return functions;
}

// torch's cuBLAS handle of this thread with TF32 switched on or off, for the time of a block.
class CublasHandle {
 public:
  explicit CublasHandle(bool allow_tf32) {
    TORCH_ERROR_CODE_CHECK(torch_get_current_cuda_blas_handle(&handle_));
    check(cublas().get_math_mode(handle_, &previous_mode_));
    check(cublas().set_math_mode(handle_, allow_tf32 ? Cublas::kTf32TensorOpMath : Cublas::kDefaultMath));
  }
  ~CublasHandle() { (void)cublas().set_math_mode(handle_, previous_mode_); }
  CublasHandle(const CublasHandle&) = delete;

  void* get() const { return handle_; }
  static void check(int status) { STD_TORCH_CHECK(status == 0, "fusedlstm: cuBLAS failed with status ", status); }

 private:
  void* handle_ = nullptr;
  int previous_mode_ = 0;
};

std::optional<GemmOperand> operand_of(const View& matrix) {
  return gemm_operand(matrix.sizes[0], matrix.sizes[1], matrix.strides[0], matrix.strides[1]);
}

}  // namespace

bool multiply_float32(const View& out, const View& a, const View& b, bool adds, bool allow_tf32) {
  if (out.dtype != Dtype::kFloat32 || a.dtype != Dtype::kFloat32 || !cublas().is_complete()) return false;
  const int64_t m = a.sizes[0], k = a.sizes[1], n = b.sizes[1];
  const auto given_a = operand_of(a), given_b = operand_of(b), given_out = operand_of(out);
  if (m * k * n == 0 || !given_a || !given_b || !given_out || given_out->is_transposed) return false;
  const std::array sizes{m, k, n, given_a->leading_dimension, given_b->leading_dimension, given_out->leading_dimension};
  for (const int64_t size : sizes)
    if (size > std::numeric_limits<int>::max()) return false;
  const auto narrow = [](int64_t size) { return static_cast<int>(size); };
  const auto operation = [](const GemmOperand& x) {
    return x.is_transposed ? Cublas::kTranspose : Cublas::kNoTranspose;
  };
  const float one = 1, beta = adds ? 1 : 0;
  const CublasHandle handle(allow_tf32);
  CublasHandle::check(cublas().sgemm(
      handle.get(), operation(*given_b), operation(*given_a), narrow(n), narrow(m), narrow(k), &one,
      static_cast<const float*>(b.data), narrow(given_b->leading_dimension), static_cast<const float*>(a.data),
      narrow(given_a->leading_dimension), &beta, static_cast<float*>(out.data), narrow(given_out->leading_dimension)));
  return true;
}

}  // namespace fusedlstm::cuda
