// What a device is told of a kernel before launches that take more than a kernel may without being allowed to.
//
// No torch.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <map>
#include <mutex>
#include <utility>

namespace fusedlstm::cuda {

// Tells each device once of each kernel: a call of the driver takes the host longer than to remember it. For any number
// of threads. A device is its primary context, which torch, and so this library, runs in.
class KernelAttributes {
 public:
  // Before a launch of the kernel on the current device with so many bytes of dynamic shared memory for a CTA, and so
  // many CTAs in a cluster. The error is that of the call that failed; the next launch makes it again.
  cudaError_t allow(const void* kernel, size_t smem_bytes, unsigned cluster_size);

 private:
  // Of every kernel, without being told.
  static constexpr size_t kDefaultSmemBytes = 48 * 1024;
  static constexpr unsigned kPortableClusterSize = 8;

  struct Allowed {
    size_t smem_bytes = kDefaultSmemBytes;
    bool any_cluster_size = false;
  };

  std::mutex mutex_;
  std::map<std::pair<const void*, int>, Allowed> allowed_;  // of a kernel on a device
};

// Those of this library's kernels.
KernelAttributes& kernel_attributes();

}  // namespace fusedlstm::cuda
