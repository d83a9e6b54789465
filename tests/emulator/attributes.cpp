// Attributes of kernels: what the host allowed them on each device.
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "emulator.h"

namespace emulator {
namespace {

struct Attributes {
  size_t smem_bytes = 48 << 10;
  unsigned cluster_size = 8;
};

std::mutex mutex;
int calls = 0;
std::map<std::pair<const void*, int>, Attributes> attributes;  // of a kernel on a device

}  // namespace

int attribute_calls() {
  return calls;
}

std::string lacking_attribute(const void* kernel, size_t smem_bytes, unsigned cluster_size) {
  const Attributes& own = attributes[{kernel, options().device}];
  const std::string where = " on device " + std::to_string(options().device);
  if (smem_bytes > own.smem_bytes)
    return std::to_string(smem_bytes) + " bytes of shared memory, allowed " + std::to_string(own.smem_bytes) + where;
  if (cluster_size > own.cluster_size)
    return "cluster of " + std::to_string(cluster_size) + " CTAs, allowed " + std::to_string(own.cluster_size) + where;
  return "";
}

}  // namespace emulator

cudaError_t cudaGetDevice(int* device) {
  *device = emulator::options().device;
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  std::this_thread::yield();  // to one that finds the attribute not set, and would set it too
  const std::lock_guard lock(emulator::mutex);
  ++emulator::calls;
  if (const int error = emulator::options().attribute_error) return static_cast<cudaError_t>(error);
  emulator::Attributes& own = emulator::attributes[{kernel, emulator::options().device}];
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize)
    own.smem_bytes = static_cast<size_t>(value);
  else
    own.cluster_size = 16;
  return cudaSuccess;
}
