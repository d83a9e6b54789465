#include "torch_host.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>
#include <torch/csrc/stable/c/shim.h>

#include <array>
#include <cstdlib>
#include <map>
#include <mutex>

#include "cuda/host/lost_context.h"
#include "device_query.h"
#include "products.h"

namespace fusedlstm::cuda {
namespace {

std::mutex fallbacks_mutex;
std::map<int, Fallback> fallbacks;  // of the devices that have been used

std::mutex pools_mutex;
std::map<int, StreamPool> pools;  // likewise

cudaStream_t current_stream(int ordinal) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(ordinal, &stream));
  return static_cast<cudaStream_t>(stream);
}

int32_t torch_code(Dtype dtype) {
  return torch::stable::detail::to<int32_t>(torch::stable::detail::from(scalar_type_of(dtype)));
}

AtenTensorHandle owner_of(const View& view) {
  return static_cast<AtenTensorHandle>(view.owner);
}

// A new reference to the tensor that a view shows, of the memory of its owner.
AtenTensorHandle new_tensor_of(const View& view) {
  void* first = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(owner_of(view), &first));
  const int64_t bytes = view.data ? static_cast<char*>(view.data) - static_cast<char*>(first) : 0;
  AtenTensorHandle tensor;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(owner_of(view), view.dimensions, view.sizes, view.strides,
                                                        bytes / static_cast<int64_t>(element_bytes(view.dtype)),
                                                        &tensor));
  return tensor;
}

Tensor tensor_of(const View& view) {
  return Tensor(new_tensor_of(view));
}

}  // namespace

Fallback& fallback_of(int ordinal) {
  const std::lock_guard lock(fallbacks_mutex);
  const auto found = fallbacks.find(ordinal);
  if (found != fallbacks.end()) return found->second;
  Device device{};
  check(query_device(ordinal, device), "device properties");
  return fallbacks.try_emplace(ordinal, device, ordinal).first->second;
}

View view_of(const Tensor& tensor, Dtype dtype) {
  View view;
  if (!tensor.defined()) return view;
  int64_t dimensions = 0, elements = 0, *sizes = nullptr, *strides = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(tensor.get(), &dimensions));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(tensor.get(), &elements));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor.get(), &sizes));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor.get(), &strides));
  view.data = elements > 0 ? tensor.data_ptr() : nullptr;
  view.owner = tensor.get();
  view.dtype = dtype;
  view.dimensions = static_cast<int>(dimensions);
  std::copy_n(sizes, dimensions, view.sizes);
  std::copy_n(strides, dimensions, view.strides);
  return view;
}

TorchHost::TorchHost(int ordinal)
    : Host(fallback_of(ordinal), std::getenv("FUSEDLSTM_PLAN"), current_stream(ordinal)), ordinal_(ordinal) {}

View TorchHost::allocate(const char*, Dtype dtype, const Sizes& sizes) {
  View view(nullptr, nullptr, dtype, sizes);
  view.owner = fusedlstm::allocate(sizes, view.strides, torch_code(dtype), aoti_torch_device_type_cuda(), ordinal_);
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(owner_of(view), &view.data));
  return view;
}

void TorchHost::release(const View& allocated) noexcept {
  (void)aoti_torch_delete_tensor_object(owner_of(allocated));
}

void TorchHost::copy(const View& to, const View& from) {
  Tensor target = tensor_of(to);
  torch::stable::copy_(target, tensor_of(from));
}

void TorchHost::multiply(const View& out, const View& a, const View& b, bool adds, bool allow_tf32) {
  if (multiply_by_cublas(out, a, b, adds, allow_tf32)) return;
  // `.out` forms only: they see neither autocast nor autograd.
  if (out.dtype != a.dtype) {
    namespace detail = torch::stable::detail;
    const auto given = [](const View& view) { return detail::from(new_tensor_of(view)); };
    // The operator takes the references that it is given, and leaves one to `out`.
    std::array<StableIValue, 4> stack{given(a), given(b), detail::from(scalar_type_of(out.dtype)), given(out)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "dtype_out", stack.data(), TORCH_ABI_VERSION));
    (void)detail::to<Tensor>(stack[0]);
    return;
  }
  const Tensor target = tensor_of(out), left = tensor_of(a), right = tensor_of(b);
  TORCH_ERROR_CODE_CHECK(adds ? aoti_torch_cuda_addmm_out(target.get(), target.get(), left.get(), right.get(), 1.0, 1.0)
                              : aoti_torch_cuda_mm_out(target.get(), left.get(), right.get()));
}

void TorchHost::sum_rows(const View& out, const View& matrix) {
  Tensor sums = tensor_of(out);
  const int64_t rows = 0;
  torch::stable::sum_out(sums, tensor_of(matrix), {{&rows, 1}});
}

void TorchHost::warn(const std::string& text) {
  aoti_torch_warn(__func__, __FILE__, __LINE__, text.c_str());
}

StreamPool& TorchHost::streams() {
  const std::lock_guard lock(pools_mutex);
  return pools[ordinal_];
}

std::string lost_context(const char* error, int ordinal) {
  // Sticky errors come back from every call. None of these waits, or disturbs a stream that is being captured.
  cudaError_t state = cudaPeekAtLastError();
  if (!is_context_lost(state)) {
    const cudaStream_t stream = current_stream(ordinal);
    cudaStreamCaptureStatus status{};
    state = cudaStreamIsCapturing(stream, &status);
    if (state == cudaSuccess && status == cudaStreamCaptureStatusNone) state = cudaStreamQuery(stream);
  }
  if (!is_context_lost(state)) return "";
  const std::lock_guard lock(fallbacks_mutex);
  const auto found = fallbacks.find(ordinal);
  return lost_context_text(error, state, found == fallbacks.end() ? LastLaunched{} : found->second.last_launched());
}

}  // namespace fusedlstm::cuda
