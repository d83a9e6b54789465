#include "choice.h"

#include <cstdlib>
#include <map>
#include <mutex>
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

Fallback fallback;

}  // namespace

Choice choose(const Problem& problem, int ordinal) {
  const char* request = std::getenv("FUSEDLSTM_PLAN");
  try {
    return fallback.choose(problem, device_record(ordinal), ordinal, request ? request : "");
  } catch (const std::invalid_argument& error) {
    STD_TORCH_CHECK(false, error.what());
  }
}

bool was_launched(const Choice& choice, int ordinal, cudaError_t result) {
  try {
    const Fallback::Outcome outcome = fallback.after_launch(choice, ordinal, result);
    if (!outcome.warning.empty()) aoti_torch_warn(__func__, __FILE__, __LINE__, outcome.warning.c_str());
    return outcome.was_launched;
  } catch (const std::runtime_error& error) {
    STD_TORCH_CHECK(false, error.what());
  }
}

}  // namespace fusedlstm::gpu
