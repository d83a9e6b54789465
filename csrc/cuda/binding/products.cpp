#include "products.h"

#include <dlfcn.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/shim_utils.h>

#include "cuda/host/gemm.h"

namespace fusedlstm::cuda {
namespace {

// torch's operators take TF32 from a switch of the whole process that is torch.matmul's; and STREAM has a product in
// every step, for each of which views would become tensors and an operator would be looked up by its name. So cuBLAS is
// called with torch's own handle: it belongs to this thread, device and stream, has torch's workspace for them, without
// which its results would not be the same in every run, and can be captured.
struct Cublas {
  static constexpr int kNoTranspose = 0, kTranspose = 1;  // cublasOperation_t
  static constexpr int kDefaultAlgorithm = -1;            // cublasGemmAlgo_t
  // cublasMath_t: nothing that the type of computation does not say, and no sums in 16 bits.
  static constexpr int kMathMode = 16;
  int (*get_math_mode)(void* handle, int* mode) = nullptr;                          // cublasGetMathMode
  int (*set_math_mode)(void* handle, int mode) = nullptr;                           // cublasSetMathMode
  int (*gemm)(void* handle, int transpose_a, int transpose_b, int m, int n, int k,  // cublasGemmEx
              const void* alpha, const void* a, int type_a, int lda, const void* b, int type_b, int ldb,
              const void* beta, void* c, int type_c, int ldc, int type_of_computation, int algorithm) = nullptr;

  bool is_complete() const { return get_math_mode && set_math_mode && gemm; }
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
      find_function(torch, "cublasGemmEx", found.gemm);
    }
    return found;
  }();
  return functions;
}

// torch's cuBLAS handle of this thread in our math mode, for the time of a block.
class CublasHandle {
 public:
  CublasHandle() {
    TORCH_ERROR_CODE_CHECK(torch_get_current_cuda_blas_handle(&handle_));
    check(cublas().get_math_mode(handle_, &previous_mode_));
    check(cublas().set_math_mode(handle_, Cublas::kMathMode));
  }
  ~CublasHandle() { (void)cublas().set_math_mode(handle_, previous_mode_); }
  CublasHandle(const CublasHandle&) = delete;

  void* get() const { return handle_; }
  static void check(int status) { STD_TORCH_CHECK(status == 0, "fusedlstm: cuBLAS failed with status ", status); }

 private:
  void* handle_ = nullptr;
  int previous_mode_ = 0;
};

// A factor, in the type that the computation wants it in.
struct Factor {
  const float as_float;
  const double as_double;
  explicit Factor(int value) : as_float(static_cast<float>(value)), as_double(value) {}
  const void* of(GemmCompute compute) const {
    return compute == GemmCompute::kFloat64 ? static_cast<const void*>(&as_double) : &as_float;
  }
};

}  // namespace

bool multiply_by_cublas(const View& out, const View& a, const View& b, bool adds, bool allow_tf32) {
  const std::optional<Gemm> gemm = gemm_of(out, a, b, allow_tf32);
  if (!gemm || !cublas().is_complete()) return false;
  const auto operation = [](bool transposes) { return transposes ? Cublas::kTranspose : Cublas::kNoTranspose; };
  const int operands = static_cast<int>(gemm->operands), result = static_cast<int>(gemm->result);
  const Factor alpha(1), beta(adds ? 1 : 0);
  const CublasHandle handle;
  CublasHandle::check(cublas().gemm(handle.get(), operation(gemm->transposes_first), operation(gemm->transposes_second),
                                    gemm->m, gemm->n, gemm->k, alpha.of(gemm->compute), b.data, operands,
                                    gemm->ld_first, a.data, operands, gemm->ld_second, beta.of(gemm->compute), out.data,
                                    result, gemm->ld_result, static_cast<int>(gemm->compute),
                                    Cublas::kDefaultAlgorithm));
  return true;
}

}  // namespace fusedlstm::cuda
