// Layers of a stack that run beside each other: one thread each, a chunk of time steps behind the layer that it reads.
//
// A team that divides the steps of one layer meets in every step; these threads wait for each other once a chunk.
#pragma once

#include <vector>

#include "layer_call.h"
#include "progress.h"
#include "spin.h"
#include "team.h"

namespace fusedlstm::cpu {

// calls: of two layers or more, in the order in which each reads what the one before it makes.
template <class Call>
void run_abreast(const std::vector<Call>& calls) {
  struct Layer {
    typename Call::Args args;
    PassKernel<typename Call::Args> kernel;
    Plan plan;
    int64_t begin;  // of its workspace
  };
  struct Run {
    std::vector<Layer> layers;
    int64_t start;
  } run{{}, 0};
  std::vector<Progress> progress(calls.size());
  int64_t workspace = 0;
  for (size_t l = 0; l < calls.size(); ++l) {
    Layer& own = run.layers.emplace_back(Layer{calls[l].args(0), calls[l].kernel(), {}, workspace});
    own.args.awaited = l > 0 ? &progress[l - 1] : nullptr;
    own.args.reported = l + 1 < calls.size() ? &progress[l] : nullptr;
    own.plan = choose_plan(own.args.shape, own.args.row_count, own.kernel.pass, 1);
    workspace += own.kernel.bytes(own.args, own.plan);
  }
  run.start = ticks();
  run_team(
      int(calls.size()), 0, workspace,
      [](void* context, Share share, char* memory) {
        const Run& r = *static_cast<Run*>(context);
        const int64_t began = ticks() - r.start;
        if (share.first > 0 && began > kPatience) share.lose(began);  // to wake up takes less
        // A thread with several begins with the one that the others wait for.
        for (size_t l = size_t(share.first); l < size_t(share.last); ++l) {
          const Layer& own = r.layers[l];
          Share alone{0, 1, 1, nullptr};
          own.kernel.run(own.args, own.plan, alone, memory + own.begin);
          if (l > 0) share.lose(own.args.awaited->late());
        }
      },
      &run);
}

}  // namespace fusedlstm::cpu
