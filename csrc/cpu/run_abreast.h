// Layers of a stack that run beside each other: one thread each, a chunk of time steps behind the layer that it reads.
//
// A team that divides the steps of one layer meets in every step; these threads wait for each other once a chunk.
#pragma once

#include <vector>

#include "progress.h"
#include "run_members.h"
#include "spin.h"

namespace fusedlstm::cpu {

// layers: in the order in which each reads what the one before it makes. A single one runs by the team.
template <class Args>
void run_abreast(std::vector<Args>& layers, Pass pass, int64_t (*bytes)(const Args&, const Plan&),
                 void (*run)(const Args&, const Plan&, Share&, char*)) {
  if (layers.size() == 1) return run_members(layers, pass, bytes, run);
  struct Call {
    const std::vector<Args>& layers;
    decltype(run) kernel;
    std::vector<Plan> plans;
    std::vector<int64_t> begins;  // of each layer's workspace, and the end of the last one's
    int64_t start;
  } call{layers, run, {}, {0}, 0};
  std::vector<Progress> progress(layers.size());
  for (size_t l = 0; l < layers.size(); ++l) {
    Args& a = layers[l];
    a.awaited = l > 0 ? &progress[l - 1] : nullptr;
    a.reported = l + 1 < layers.size() ? &progress[l] : nullptr;
    call.plans.push_back(choose_plan(a.shape, a.row_count, pass, 1));
    call.begins.push_back(call.begins.back() + bytes(a, call.plans.back()));
  }
  call.start = ticks();
  run_team(
      int(layers.size()), 0, call.begins.back(),
      [](void* context, Share share, char* workspace) {
        const Call& c = *static_cast<Call*>(context);
        const int64_t began = ticks() - c.start;
        if (share.first > 0 && began > kPatience) share.lose(began);  // to wake up takes less
        // A thread with several begins with the one that the others wait for.
        for (size_t l = size_t(share.first); l < size_t(share.last); ++l) {
          Share alone{0, 1, 1, nullptr};
          c.kernel(c.layers[l], c.plans[l], alone, workspace + c.begins[l]);
          if (l > 0) share.lose(c.layers[l].awaited->late());
        }
      },
      &call);
}

}  // namespace fusedlstm::cpu
