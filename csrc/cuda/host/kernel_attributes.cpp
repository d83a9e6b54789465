#include "kernel_attributes.h"

namespace fusedlstm::cuda {

cudaError_t KernelAttributes::allow(const void* kernel, size_t smem_bytes, unsigned cluster_size) {
  if (smem_bytes <= kDefaultSmemBytes && cluster_size <= kPortableClusterSize) return cudaSuccess;
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  const std::lock_guard lock(mutex_);
  Allowed& allowed = allowed_[{kernel, device}];
  if (smem_bytes > allowed.smem_bytes) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(smem_bytes));
    if (error != cudaSuccess) return error;
    allowed.smem_bytes = smem_bytes;
  }
  if (cluster_size > kPortableClusterSize && !allowed.any_cluster_size) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (error != cudaSuccess) return error;
    allowed.any_cluster_size = true;
  }
  return cudaSuccess;
}

KernelAttributes& kernel_attributes() {
  static KernelAttributes all;
  return all;
}

}  // namespace fusedlstm::cuda
