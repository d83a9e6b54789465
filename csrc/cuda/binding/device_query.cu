#include <algorithm>

#include "cuda/device/primitives.cuh"
#include "cuda/host/kernel_shapes.h"
#include "device_query.h"

namespace fusedlstm::cuda {
namespace {

// Takes an SM for itself, as the resident kernels do: what can be resident of it can be of them.
__global__ void __launch_bounds__(KernelShape::kWarps * 32, 1) whole_sm_kernel() {}

// Clusters of this size that run at once; 0 where the device has none.
int resident_clusters(int size, int smem_bytes) {
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = size;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(size);
  config.blockDim = dim3(KernelShape::kWarps * 32);
  config.dynamicSmemBytes = smem_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&clusters, whole_sm_kernel, &config) == cudaSuccess) return clusters;
  (void)cudaGetLastError();
  return 0;
}

}  // namespace

cudaError_t query_device(int ordinal, Device& device) {
  cudaError_t error = cudaSuccess;
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, which, ordinal);
    return value;
  };
  device.name = "CUDA device " + std::to_string(ordinal);
  device.compute_capability =
      attribute(cudaDevAttrComputeCapabilityMajor) * 10 + attribute(cudaDevAttrComputeCapabilityMinor);
  device.sm_count = attribute(cudaDevAttrMultiProcessorCount);
  device.smem_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  device.cooperative_launch = attribute(cudaDevAttrCooperativeLaunch) != 0;
  // Only for the planner's estimates, and some virtual devices do not tell them.
  const auto rate = [&](cudaDeviceAttr which, int usual) {
    int value = 0;
    if (cudaDeviceGetAttribute(&value, which, ordinal) != cudaSuccess) (void)cudaGetLastError();
    return value > 0 ? value : usual;
  };
  device.clock_mhz = rate(cudaDevAttrClockRate, 1'500'000) * 1e-3;
  // Two transfers a clock, in bits: the published bandwidth of every device in the planner's table.
  device.memory_gb_per_s =
      2.0 * rate(cudaDevAttrMemoryClockRate, 1'500'000) * rate(cudaDevAttrGlobalMemoryBusWidth, 4096) / 8 * 1e-6;
  cudaFuncAttributes attributes;
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, whole_sm_kernel);  // is there code for it?
  if (error != cudaSuccess) {
    (void)cudaGetLastError();
    return error;
  }
  // Less than the device's where the driver compiled PTX of an older one.
  device.code_capability = std::min(attributes.ptxVersion, device.compute_capability);
  if (device.compute_capability >= 90) {
    const int smem_bytes = static_cast<int>(device.smem_bytes);
    error = cudaFuncSetAttribute(whole_sm_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, smem_bytes);
    if (error == cudaSuccess)
      error = cudaFuncSetAttribute(whole_sm_kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (error != cudaSuccess) return error;
    device.max_clusters_of_2 = resident_clusters(2, smem_bytes);
    device.max_clusters_of_4 = resident_clusters(4, smem_bytes);
    device.max_clusters_of_8 = resident_clusters(8, smem_bytes);
    device.max_clusters_of_16 = resident_clusters(16, smem_bytes);
  }
  return cudaSuccess;
}

}  // namespace fusedlstm::cuda
