// What becomes of a layer when a device refuses to launch a kernel.
//
// Level 2: no torch, so that tests can refuse launches where there is no GPU.
#pragma once
#include <cuda_runtime_api.h>

#include <mutex>
#include <set>
#include <string>
#include <utility>

#include "plan.h"

namespace fusedlstm::gpu {

// Why a launch did not happen.
struct Refusal {
  const char* cause;     // and what the user can do; null: not a refusal, but a fault of the program or the hardware
  bool are_others_lost;  // whether no other kernel of this library can run on the device either
};
Refusal refusal_of(cudaError_t error);

// "fusedlstm: <what>: <CUDA's text> (<cause>)"
std::string failure_text(const std::string& what, cudaError_t error);

struct Choice {
  Plan plan;
  bool is_forced;  // by FUSEDLSTM_PLAN: a refused launch is an error then
};

// Remembers which transports a device refuses to launch; STREAM, whose launches ask nothing of a device, replaces them.
class Fallback {
 public:
  // The plan that may be launched on device `ordinal`. Throws std::invalid_argument like make_plan.
  Choice choose(const Problem& problem, const Device& device, int ordinal, const std::string& request);

  struct Outcome {
    bool was_launched;    // false: the caller runs STREAM
    std::string warning;  // for the user, once per device and transport; else empty
  };
  // After the launch of a resident kernel. Throws std::runtime_error where STREAM must not or cannot replace it.
  Outcome after_launch(const Choice& choice, int ordinal, cudaError_t result);

 private:
  std::mutex mutex_;
  std::set<std::pair<int, Transport>> refused_;
};

}  // namespace fusedlstm::gpu
