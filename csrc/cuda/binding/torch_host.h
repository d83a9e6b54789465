// The Host of the library: torch's memory and operators, on the current stream of a device.
#pragma once
#include "call/arguments.h"
#include "call/tensors.h"
#include "cuda/host/host.h"

namespace fusedlstm::cuda {

// A tensor of this dtype, for as long as it lives; null where it is undefined.
View view_of(const Tensor& tensor, Dtype dtype);
inline View view_of(const OptionalTensor& tensor, Dtype dtype) {
  return tensor ? view_of(*tensor, dtype) : View();
}
// Each of a list.
template <class SomeTensors>
void view_each(const SomeTensors& tensors, Dtype dtype, View* views) {
  for (const auto& tensor : tensors) *views++ = view_of(tensor, dtype);
}

// What is known of a device, from its first use on. It must be the current one.
Fallback& fallback_of(int ordinal);

class TorchHost final : public Host {
 public:
  // Device `ordinal` must be the current one.
  explicit TorchHost(int ordinal);

  View allocate(const char* name, Dtype dtype, const Sizes& sizes) override;
  void release(const View& allocated) noexcept override;
  void copy(const View& to, const View& from) override;
  void multiply(const View& out, const View& a, const View& b, bool adds, bool allow_tf32) override;
  void sum_rows(const View& out, const View& matrix) override;
  void warn(const std::string& text) override;
  StreamPool& streams() override;

 private:
  const int ordinal_;
};

// What to say of an exception that leaves an operator, if the CUDA context is lost; else "".
std::string lost_context(const char* error, int ordinal);

}  // namespace fusedlstm::cuda
