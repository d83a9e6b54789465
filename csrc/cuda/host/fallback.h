// What becomes of a layer when a device refuses to launch a kernel.
//
// No torch, so that tests can refuse launches where there is no GPU.
#pragma once
#include <cuda_runtime_api.h>

#include <mutex>
#include <optional>
#include <string>

#include "lost_context.h"
#include "plan_contenders.h"
#include "plan_memo.h"
#include "plan_varied.h"

namespace fusedlstm::cuda {

// Why a launch did not happen.
struct LaunchFailure {
  enum Kind : uint8_t {
    kRefusal,    // of this kernel, or of clusters of this size: others may run
    kNoKernels,  // no kernel of this library can run on the device
    kFault,      // of the program, this library or the hardware
  } kind;
  const char* cause;  // and what the user can do; null: CUDA's own text says all
};
LaunchFailure failure_of(cudaError_t error);

// "fusedlstm: <what>: <CUDA's text> (<cause>)"
std::string failure_text(const std::string& what, cudaError_t error);

// Throws std::runtime_error with failure_text where a call was not a success.
void check(cudaError_t error, const char* what);

struct Choice {
  Plan plan;
  bool is_forced;  // by FUSEDLSTM_PLAN: a refused launch is an error then
};

// A kernel with variants (varied.h).
struct VariedKernel {
  const char* cell;  // as its operators are called
  Dtype dtype;
  Pass pass;
  Transport transport = Transport::kStream;  // of its plan
};

// Chooses the kernels of one device, and remembers which of them it refuses to launch; the best of the others take
// their place, and STREAM at last, whose launches ask nothing of a device. For any number of threads.
class Fallback {
 public:
  Fallback(const Device& device, int ordinal) : plans_(device), ordinal_(ordinal) {}

  // The plan to launch. Throws std::invalid_argument like make_plan.
  Choice choose(const Problem& problem, const std::string& request);

  struct Replacement {
    Choice choice;        // to launch instead: another resident kernel, or STREAM
    std::string warning;  // for the user, once per refused kernel; else empty
  };
  // After the launch of a choice's resident kernel for this problem has failed. Throws std::runtime_error where no
  // other kernel must or can replace it.
  Replacement replace(const Choice& refused, const Problem& problem, cudaError_t error);

  // The same of a recurrence with variants. Throws like make_varied_plan.
  VariedPlan choose_varied(const VariedProblem& problem, const std::string& request);
  struct VariedReplacement {
    VariedPlan plan;  // of STREAM
    std::string warning;
  };
  VariedReplacement replace_varied(const VariedPlan& refused, cudaError_t error);

  // As PlanMemo::prefer.
  void prefer(const Problem& problem, const std::string& request);
  // As contenders_json of the device.
  std::string contenders(const Problem& problem, const CudnnCall& call);

  // To be told of every pass that is launched.
  void launched(const Plan& plan);
  // And of every one with variants, before its first launch: it has many, and a fault of one is an error of the next.
  void launches_varied(const VariedKernel& kernel);
  LastLaunched last_launched();
  // How the last pass of this kind ran; "" before the first.
  std::string last_plan(Pass pass);

 private:
  std::mutex mutex_;
  PlanMemo plans_;
  Plan last_resident_{};
  std::optional<VariedKernel> last_varied_;    // since then
  std::optional<Plan> last_plans_[2];          // of each pass
  bool is_varied_refused_[kVariedKinds][2]{};  // in each pass
  bool& is_varied_refused(const VariedProblem& problem);
  const int ordinal_;
};

}  // namespace fusedlstm::cuda
