// The one place where it is chosen how the CPU kernels run a layer, or layers beside each other: by a model of their
// work, from sizes alone. Tests force a plan by name at any time.
#pragma once

#include <string>
#include <vector>

#include "kernel_table.h"

namespace fusedlstm::cpu {

// isa: as of force_isa; plan: "direct" or "packed", then optionally ":rows" or ":units", then optionally ":N": a team
// dissolves at its Nth meeting, as one does that had to wait too long; or "abreast", all layers of a stack for which
// torch has threads, each by one, even where there are fewer CPUs. Empty strings return to automatic. Throws
// std::runtime_error on any other name.
void force(const std::string& isa, const std::string& plan);

// What is to be run of a layer; kFrozen: forward, with weights that are in panels already; kQuantized: those of int8.
enum class Pass : int { kForward, kFrozen, kQuantized, kBackward };

// How a layer runs: how many threads, and what they divide.
Plan choose_plan(const Shape& shape, int64_t row_count, Pass pass, int threads);

// How the members of an ensemble run in one launch of `threads`: the first `alone` of them by one thread each, the
// others one after another by all threads.
struct EnsemblePlan {
  int threads;
  int64_t alone;
  Plan of_thread, of_team;
  int last_meeting = 0;  // where the team dissolves; 0: where it has to
};
EnsemblePlan choose_ensemble_plan(const Shape& shape, int64_t row_count, int64_t members, Pass pass, int threads);

// How many layers of a stack run beside each other, each by one thread; 1: one after the other, by all. Without
// `threads`: by those that there are now.
size_t layers_abreast(const Shape& shape, int64_t row_count, Pass pass, size_t layers);
size_t layers_abreast(const Shape& shape, int64_t row_count, Pass pass, size_t layers, int threads);

// How many threads divide the rows of second order, of so many elements in all.
int threads_of_steps(int64_t elements);

// The plan of such layers for so many threads, in words: "2 layers abreast, packed", "packed:units by 4 threads". kind:
// "forward", "frozen", "quantized" or "backward"; sizes: steps, batch, input, hidden, proj, directions, gates. Throws
// std::runtime_error on anything else.
std::string describe_plan(const std::string& kind, const std::vector<int64_t>& sizes, int64_t layers, int64_t threads);

// JSON: {"isa": ..., "reason": ..., "available": [...], "reduces_range": whether int8 layers are faster with weights of
// reduced range, "plan": ..., "threads": ...}.
std::string describe();

}  // namespace fusedlstm::cpu
