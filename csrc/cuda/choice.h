// Which kernel runs a layer on a device of this machine: the planner's choice, or what is left after a refused launch.
#pragma once
#include "fallback.h"

namespace fusedlstm::gpu {

// The plan for this problem on device `ordinal`, which must be the current one.
Choice choose(const Problem& problem, int ordinal);

// Whether a resident kernel was launched with this result; false: the device refused it (the user is warned, once), and
// the caller runs STREAM.
bool was_launched(const Choice& choice, int ordinal, cudaError_t result);

}  // namespace fusedlstm::gpu
