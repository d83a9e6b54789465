// One launch of a team for the kernels of one layer, or of all members of an ensemble.
#pragma once

#include <algorithm>
#include <span>
#include <type_traits>

#include "plan.h"
#include "team.h"

namespace fusedlstm::cpu {

// Runs all members, or the one layer that there is, in one launch of a team. Members have the same sizes, and null
// pointers in the same places.
template <class Args>
void run_members(std::type_identity_t<std::span<const Args>> members, Pass pass,
                 int64_t (*bytes)(const Args&, const Plan&), void (*run)(const Args&, const Plan&, Share&, char*)) {
  if (members.empty()) return;
  const int64_t count = int64_t(members.size());
  struct Call {
    std::span<const Args> members;
    decltype(run) kernel;
    EnsemblePlan plan;
    int64_t bytes_of_thread, bytes_of_team;
  } call{members, run, choose_ensemble_plan(members[0].shape, members[0].row_count, count, pass, pool_threads()), 0, 0};
  if (call.plan.alone > 0) call.bytes_of_thread = bytes(members[0], call.plan.of_thread);
  if (call.plan.alone < count) call.bytes_of_team = bytes(members[0], call.plan.of_team);
  run_team(
      call.plan.threads, call.plan.last_meeting, std::max(call.plan.threads * call.bytes_of_thread, call.bytes_of_team),
      [](void* context, Share share, char* workspace) {
        const Call& c = *static_cast<Call*>(context);
        Share alone{0, 1, 1, nullptr};
        const Range own = share.of(c.plan.alone);
        for (int64_t m = own.begin; m < own.end; ++m)
          c.kernel(c.members[size_t(m)], c.plan.of_thread, alone, workspace + share.first * c.bytes_of_thread);
        for (size_t m = size_t(c.plan.alone); m < c.members.size(); ++m) {
          if (m > 0) share.meet();  // from here on, nobody uses the workspace for an earlier member
          c.kernel(c.members[m], c.plan.of_team, share, workspace);
        }
      },
      &call);
}

}  // namespace fusedlstm::cpu
