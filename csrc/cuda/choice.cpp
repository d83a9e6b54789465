#include "choice.h"

#include <cstdlib>
#include <map>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "device_query.h"
#include "tensor_ops.h"

namespace fusedlstm::gpu {
namespace {

Fallback& fallback_of(int ordinal) {
  static std::mutex mutex;
  static std::map<int, Fallback> known;
  const std::lock_guard lock(mutex);
  const auto found = known.find(ordinal);
  if (found != known.end()) return found->second;
  Device device{};
  check(query_device(ordinal, device), "device properties");
  return known.try_emplace(ordinal, device, ordinal).first->second;
}

}  // namespace

Choice choose(const Problem& problem, int ordinal) {
  const char* request = std::getenv("FUSEDLSTM_PLAN");
  try {
    return fallback_of(ordinal).choose(problem, request ? request : "");
  } catch (const std::invalid_argument& error) {
    STD_TORCH_CHECK(false, error.what());
  }
}

Choice replace(const Choice& refused, const Problem& problem, int ordinal, cudaError_t error) {
  Fallback::Replacement replacement = fallback_of(ordinal).replace(refused, problem, error);
  if (!replacement.warning.empty()) aoti_torch_warn(__func__, __FILE__, __LINE__, replacement.warning.c_str());
  return std::move(replacement.choice);
}

}  // namespace fusedlstm::gpu
