#include "choice.h"

#include <cstdlib>
#include <map>
#include <mutex>
#include <set>
#include <stdexcept>

#include "device_query.h"
#include "tensor_ops.h"

namespace fusedlstm::gpu {
namespace {

const Device& device_record(int ordinal) {
  static std::mutex mutex;
  static std::map<int, Device> known;
  const std::lock_guard lock(mutex);
  const auto found = known.find(ordinal);
  if (found != known.end()) return found->second;
  Device device{};
  check(query_device(ordinal, device), "device properties");
  return known.emplace(ordinal, device).first->second;
}

// Transports that a device has refused to launch: by MPS, MIG, an old driver, or a build without its architecture.
class Refusals {
 public:
  bool contains(int ordinal, Transport transport) {
    const std::lock_guard lock(mutex_);
    return refused_.count({ordinal, transport}) > 0;
  }

  void add(int ordinal, Transport transport, cudaError_t error) {
    const std::lock_guard lock(mutex_);
    if (!refused_.insert({ordinal, transport}).second) return;
    const std::string message = "fusedlstm: device " + std::to_string(ordinal) + " cannot launch the " +
                                transport_name(transport) + " kernels (" + cudaGetErrorString(error) +
                                "); it runs the layer step by step from now on";
    aoti_torch_warn(__func__, __FILE__, __LINE__, message.c_str());
  }

 private:
  std::mutex mutex_;
  std::set<std::pair<int, Transport>> refused_;
};
Refusals refusals;

}  // namespace

Choice choose(const Problem& problem, int ordinal) {
  const char* request = std::getenv("FUSEDLSTM_PLAN");
  const bool forced = request && *request;
  try {
    Plan plan = make_plan(problem, device_record(ordinal), forced ? request : "");
    if (!forced && refusals.contains(ordinal, plan.shape.transport))
      plan = make_plan(problem, device_record(ordinal), "stream");
    return {plan, forced};
  } catch (const std::invalid_argument& error) {
    STD_TORCH_CHECK(false, error.what());
  }
}

bool was_launched(const Choice& choice, int ordinal, cudaError_t result) {
  if (result == cudaSuccess) return true;
  if (choice.forced) check(result, to_string(choice.plan).c_str());
  refusals.add(ordinal, choice.plan.shape.transport, result);
  return false;
}

}  // namespace fusedlstm::gpu
