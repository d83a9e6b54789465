#include "fallback.h"

#include <stdexcept>

#include "plan_request.h"

namespace fusedlstm::cuda {

LaunchFailure failure_of(cudaError_t error) {
  using enum LaunchFailure::Kind;
  switch (error) {
    case cudaErrorCooperativeLaunchTooLarge:
      return {kRefusal,
              "its blocks cannot all run at once: this process may use only a part of the GPU, by MPS, MIG or a green "
              "context"};
    case cudaErrorInvalidClusterSize:
      return {kRefusal, "no room for its clusters: this process may use only a part of the GPU, by MPS or MIG"};
    case cudaErrorNotSupported:
      return {kRefusal, "cooperative or cluster launches are not supported here"};
    case cudaErrorLaunchOutOfResources:
      return {kRefusal, "its registers or shared memory are more than the device gives"};
    case cudaErrorInvalidConfiguration:
      return {kRefusal, "this build has no such kernel, or the device no such launch"};
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorJitCompilerNotFound:
    case cudaErrorJitCompilationDisabled:
      return {kNoKernels, "no kernels for this device: build with TORCH_CUDA_ARCH_LIST set to its compute capability"};
    case cudaErrorInsufficientDriver:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorCompatNotSupportedOnDevice:
      return {kNoKernels, "update the NVIDIA driver, or build with an older CUDA toolkit"};
    case cudaErrorInvalidValue:
      return {kFault, "a bug of fusedlstm, please report it; FUSEDLSTM_PLAN=stream may avoid it"};
    default:
      return {kFault, nullptr};
  }
}

std::string failure_text(const std::string& what, cudaError_t error) {
  const char* cause = failure_of(error).cause;
  return "fusedlstm: " + what + ": " + cudaGetErrorString(error) + (cause ? std::string(" (") + cause + ")" : "");
}

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(failure_text(what, error));
}

Choice Fallback::choose(const Problem& problem, const std::string& request) {
  const std::lock_guard lock(mutex_);
  return {plans_.plan(problem, request), parse_request(request).names_kernel()};
}

Fallback::Replacement Fallback::replace(const Choice& refused, const Problem& problem, cudaError_t error) {
  const Plan& plan = refused.plan;
  if (refused.is_forced || failure_of(error).kind != LaunchFailure::kRefusal)
    throw std::runtime_error(failure_text(to_string(plan), error));
  const bool is_of_size = error == cudaErrorInvalidClusterSize && is_in_cluster(plan.shape.transport);
  const int cluster_size = is_of_size ? plan.ctas_per_tile : 0;
  const RefusedKernel kernel{plan.arithmetic, plan.shape, cluster_size};

  const std::lock_guard lock(mutex_);
  const bool is_new = plans_.refuse(kernel);  // not, if other threads' launches were under way
  Replacement replacement{{plans_.plan(problem, ""), false}, ""};
  if (is_new) {
    std::string what =
        "device " + std::to_string(ordinal_) + " refuses the " + kernel_name(plan.arithmetic, plan.shape);
    if (cluster_size > 0) what += " in clusters of " + std::to_string(cluster_size);
    replacement.warning = failure_text(what, error) + "; instead of it runs: " + to_string(replacement.choice.plan);
  }
  return replacement;
}

bool& Fallback::is_varied_refused(const VariedProblem& problem) {
  return is_varied_refused_[static_cast<int>(problem.kind())][static_cast<int>(problem.layer.pass)];
}

VariedPlan Fallback::choose_varied(const VariedProblem& problem, const std::string& request) {
  const std::lock_guard lock(mutex_);
  return make_varied_plan(problem, plans_.device(), request, is_varied_refused(problem));
}

Fallback::VariedReplacement Fallback::replace_varied(const VariedPlan& refused, cudaError_t error) {
  if (refused.is_forced || failure_of(error).kind != LaunchFailure::kRefusal)
    throw std::runtime_error(failure_text(to_string(refused), error));
  const std::lock_guard lock(mutex_);
  bool& is_refused = is_varied_refused(refused.problem);
  VariedReplacement replacement{make_varied_plan(refused.problem, plans_.device(), "", true), ""};
  if (!is_refused)
    replacement.warning =
        failure_text("device " + std::to_string(ordinal_) + " refuses the kernel of " + to_string(refused), error) +
        "; instead of it runs: " + to_string(replacement.plan);
  is_refused = true;
  return replacement;
}

void Fallback::prefer(const Problem& problem, const std::string& request) {
  const std::lock_guard lock(mutex_);
  plans_.prefer(problem, request);
}

std::string Fallback::contenders(const Problem& problem, const CudnnCall& call) {
  const std::lock_guard lock(mutex_);
  return contenders_json(problem, plans_.device(), call);
}

void Fallback::launched(const Plan& plan) {
  const std::lock_guard lock(mutex_);
  last_plans_[static_cast<int>(plan.shape.pass)] = plan;
  if (plan.shape.transport == Transport::kStream) return;
  last_resident_ = plan;
  last_varied_.reset();
}

void Fallback::launches_varied(const VariedKernel& kernel) {
  const std::lock_guard lock(mutex_);
  last_varied_ = kernel;
}

LastLaunched Fallback::last_launched() {
  const std::lock_guard lock(mutex_);
  LastLaunched last;
  if (last_resident_.shape.transport != Transport::kStream)
    last.resident =
        kernel_name(last_resident_.arithmetic, last_resident_.shape) + " (" + to_string(last_resident_) + ")";
  if (last_varied_)
    last.varied = std::string(dtype_name(last_varied_->dtype)) + " " + last_varied_->cell + " " +
                  pass_name(last_varied_->pass) + " kernel with variants" +
                  (last_varied_->transport == Transport::kLocal ? ", local" : "");
  return last;
}

std::string Fallback::last_plan(Pass pass) {
  const std::lock_guard lock(mutex_);
  const std::optional<Plan>& plan = last_plans_[static_cast<int>(pass)];
  return plan ? to_string(*plan) : "";
}

}  // namespace fusedlstm::cuda
