#include "products.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>
#include <torch/csrc/stable/c/shim.h>

#include <array>
#include <limits>

#include "gemm.h"

namespace fusedlstm::gpu {
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

std::optional<GemmOperand> operand_of(const Tensor& t) {
  return gemm_operand(t.size(0), t.size(1), t.stride(0), t.stride(1));
}

// out = a b + beta out; false where cuBLAS cannot be asked for it: then torch's operators are, and follow their switch.
bool multiply_float32(const Tensor& out, const Tensor& a, const Tensor& b, float beta, bool allow_tf32) {
  if (out.scalar_type() != ScalarType::Float || a.scalar_type() != ScalarType::Float || !cublas().is_complete())
    return false;
  const int64_t m = a.size(0), k = a.size(1), n = b.size(1);
  const auto given_a = operand_of(a), given_b = operand_of(b), given_out = operand_of(out);
  if (m * k * n == 0 || !given_a || !given_b || !given_out || given_out->is_transposed) return false;
  const std::array sizes{m, k, n, given_a->leading_dimension, given_b->leading_dimension, given_out->leading_dimension};
  for (const int64_t size : sizes)
    if (size > std::numeric_limits<int>::max()) return false;
  const auto narrow = [](int64_t size) { return static_cast<int>(size); };
  const auto operation = [](const GemmOperand& x) {
    return x.is_transposed ? Cublas::kTranspose : Cublas::kNoTranspose;
  };
  const float one = 1;
  const CublasHandle handle(allow_tf32);
  CublasHandle::check(cublas().sgemm(handle.get(), operation(*given_b), operation(*given_a), narrow(n), narrow(m),
                                     narrow(k), &one, static_cast<const float*>(b.data_ptr()),
                                     narrow(given_b->leading_dimension), static_cast<const float*>(a.data_ptr()),
                                     narrow(given_a->leading_dimension), &beta, static_cast<float*>(out.data_ptr()),
                                     narrow(given_out->leading_dimension)));
  return true;
}

}  // namespace

void multiply(const Tensor& out, const Tensor& a, const Tensor& b, bool allow_tf32) {
  if (multiply_float32(out, a, b, 0, allow_tf32)) return;
  // `.out` forms only: they see neither autocast nor autograd.
  if (out.scalar_type() == a.scalar_type()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_mm_out(out.get(), a.get(), b.get()));
    return;
  }
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(a), from(b), from(out.scalar_type()), from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "dtype_out", stack.data(), TORCH_ABI_VERSION));
  (void)torch::stable::detail::to<Tensor>(stack[0]);  // owns a reference to `out`
}

void multiply_add(const Tensor& out, const Tensor& a, const Tensor& b, bool allow_tf32) {
  if (multiply_float32(out, a, b, 1, allow_tf32)) return;
  TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_addmm_out(out.get(), out.get(), a.get(), b.get(), 1.0, 1.0));
}

}  // namespace fusedlstm::gpu
