// The Host of csrc/cuda/host/host.h on CPU memory that the emulator checks: what runs the library's host code in the
// tests.
#pragma once
#include <string>
#include <vector>

#include "cuda/host/host.h"

namespace emulator {

// Workspaces are registered with the emulator under their names, lie apart from each other, and are forgotten when they
// are released: a kernel that uses one later fails. What the host itself reads must have been written.
class EmulatedHost final : public fusedlstm::cuda::Host {
 public:
  using View = fusedlstm::cuda::View;

  EmulatedHost(fusedlstm::cuda::Fallback& fallback, const std::string& request)
      : Host(fallback, request.c_str(), nullptr) {}

  View allocate(const char* name, fusedlstm::Dtype dtype, const fusedlstm::Sizes& sizes) override;
  void release(const View& allocated) noexcept override;
  void copy(const View& to, const View& from) override;
  // Where it may use TF32 it does: operands of float32 are rounded.
  void multiply(const View& out, const View& a, const View& b, bool adds, bool allow_tf32) override;
  void sum_rows(const View& out, const View& matrix) override;
  void warn(const std::string& text) override { warnings.push_back(text); }
  fusedlstm::cuda::StreamPool& streams() override { return streams_; }

  std::vector<std::string> warnings;
  int live = 0;                          // allocations that were not released
  std::vector<bool> products_with_tf32;  // of each product, whether it may use TF32

 private:
  fusedlstm::cuda::StreamPool streams_;
};

}  // namespace emulator
