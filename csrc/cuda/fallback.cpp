#include "fallback.h"

#include <stdexcept>

namespace fusedlstm::gpu {

Refusal refusal_of(cudaError_t error) {
  constexpr bool kOthersRun = false, kOthersAreLost = true;
  switch (error) {
    case cudaErrorCooperativeLaunchTooLarge:
      return {
          "its blocks cannot all run at once: this process may use only a part of the GPU, by MPS, MIG or a green "
          "context",
          kOthersRun};
    case cudaErrorInvalidClusterSize:
      return {"no room for its clusters: this process may use only a part of the GPU, by MPS or MIG", kOthersRun};
    case cudaErrorNotSupported:
      return {"cooperative or cluster launches are not supported here", kOthersRun};
    case cudaErrorLaunchOutOfResources:
    case cudaErrorInvalidValue:
      return {"its registers or shared memory are more than the device gives", kOthersRun};
    case cudaErrorInvalidConfiguration:
      return {"this build has no such kernel, or the device no such launch", kOthersRun};
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorJitCompilerNotFound:
    case cudaErrorJitCompilationDisabled:
      return {"no kernels for this device: build with TORCH_CUDA_ARCH_LIST set to its compute capability",
              kOthersAreLost};
    case cudaErrorInsufficientDriver:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorCompatNotSupportedOnDevice:
      return {"update the NVIDIA driver, or build with an older CUDA toolkit", kOthersAreLost};
    default:
      return {nullptr, kOthersRun};
  }
}

std::string failure_text(const std::string& what, cudaError_t error) {
  const char* cause = refusal_of(error).cause;
  return "fusedlstm: " + what + ": " + cudaGetErrorString(error) + (cause ? std::string(" (") + cause + ")" : "");
}

Choice Fallback::choose(const Problem& problem, const Device& device, int ordinal, const std::string& request) {
  Choice choice{make_plan(problem, device, request), !request.empty()};
  const std::lock_guard lock(mutex_);
  if (!choice.is_forced && refused_.count({ordinal, choice.plan.shape.transport}) > 0)
    choice.plan = make_plan(problem, device, "stream");
  return choice;
}

Fallback::Outcome Fallback::after_launch(const Choice& choice, int ordinal, cudaError_t result) {
  if (result == cudaSuccess) return {true, ""};
  const Refusal refusal = refusal_of(result);
  if (choice.is_forced || !refusal.cause || refusal.are_others_lost)
    throw std::runtime_error(failure_text(to_string(choice.plan), result));
  const Transport transport = choice.plan.shape.transport;
  const std::lock_guard lock(mutex_);
  if (!refused_.insert({ordinal, transport}).second) return {false, ""};
  const std::string what =
      "device " + std::to_string(ordinal) + " refuses the " + transport_name(transport) + " kernels";
  return {false, failure_text(what, result) + "; layers run step by step there from now on"};
}

}  // namespace fusedlstm::gpu
