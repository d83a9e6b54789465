#include "plan_memo.h"

#include <algorithm>
#include <functional>

namespace fusedlstm::cuda {

size_t PlanMemo::Hash::operator()(const Key& key) const {
  const Problem& p = key.problem;
  uint64_t hash = key.request.empty() ? 0 : std::hash<std::string>()(key.request);
  const auto add = [&](auto value) {
    hash = (hash ^ static_cast<uint64_t>(value)) * 0x9E3779B97F4A7C15u;  // odd, and half of its bits are set
    hash ^= hash >> 32;
  };
  add(p.T);
  add(p.B);
  add(p.H);
  add(p.proj_size);
  add(p.M);
  add(p.L);
  add(p.D << 26 | static_cast<int>(p.cell) << 24 | static_cast<int>(p.dtype) << 16 | static_cast<int>(p.pass) << 8 |
      static_cast<int>(p.allow_tf32));
  return hash;
}

const Plan& PlanMemo::plan(const Problem& problem, const std::string& request) {
  Key key{problem, request};
  if (request.empty())
    if (const auto found = preferred_.find(key); found != preferred_.end()) return found->second;
  if (request.empty() && problem.L > 1) {  // what is preferred for a layer is for those of a stack
    key.problem.L = 1;
    if (const auto found = preferred_.find(key); found != preferred_.end())
      return plan(problem, request_of(found->second.arithmetic, found->second.shape));
    key.problem.L = problem.L;
  }
  if (const auto found = plans_.find(key); found != plans_.end()) return found->second;
  const Plan plan = make_plan(problem, device_, request);
  if (plans_.size() == kMost) plans_.clear();
  return plans_.emplace(std::move(key), plan).first->second;
}

void PlanMemo::prefer(const Problem& problem, const std::string& request) {
  const Plan plan = make_plan(problem, device_, request);
  if (preferred_.size() == kMost) preferred_.clear();
  preferred_.insert_or_assign({problem, ""}, plan);
}

bool PlanMemo::refuse(const RefusedKernel& kernel) {
  if (std::find(device_.refused.begin(), device_.refused.end(), kernel) != device_.refused.end()) return false;
  device_.refused.push_back(kernel);
  plans_.clear();
  std::erase_if(preferred_, [&](const auto& each) {
    return kernel.is_of(each.second.arithmetic, each.second.shape, each.second.ctas_per_tile);
  });
  return true;
}

}  // namespace fusedlstm::cuda
