// The plans of one device, each made once: a layer asks for the same one in every call.
//
// Plain C++.
#pragma once
#include <string>
#include <unordered_map>

#include "plan.h"

namespace fusedlstm::cuda {

// For one thread at a time. The device belongs to it, so that no plan outlives the facts that it was made from.
class PlanMemo {
 public:
  // Plans that are kept, and likewise those that are preferred; all are forgotten when there is one more.
  static constexpr size_t kMost = 1024;

  explicit PlanMemo(const Device& device) : device_(device) {}

  // As make_plan of the device; without a request the one that is preferred, if there is one. The plan lives until the
  // next call.
  const Plan& plan(const Problem& problem, const std::string& request);
  // From now on the problem has the plan of this request, which was found to be the best. Throws std::invalid_argument
  // like make_plan.
  void prefer(const Problem& problem, const std::string& request);
  const Device& device() const { return device_; }
  // From now on no plan has a kernel that the device has refused. False: that was known.
  bool refuse(const RefusedKernel& kernel);
  size_t size() const { return plans_.size(); }

 private:
  struct Key {
    Problem problem;
    std::string request;
    bool operator==(const Key&) const = default;
  };
  struct Hash {
    size_t operator()(const Key& key) const;
  };

  Device device_;
  using Plans = std::unordered_map<Key, Plan, Hash>;
  Plans plans_;
  Plans preferred_;  // without requests
};

}  // namespace fusedlstm::cuda
