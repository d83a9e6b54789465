// Which kernel runs a layer on a device of this machine: the planner's choice, or what is left after refused launches.
#pragma once
#include "fallback.h"

namespace fusedlstm::gpu {

// The plan for this problem on device `ordinal`, which must be the current one.
Choice choose(const Problem& problem, int ordinal);

// What to launch after the launch of a choice's resident kernel has failed; the user is warned of each kernel once.
Choice replace(const Choice& refused, const Problem& problem, int ordinal, cudaError_t error);

}  // namespace fusedlstm::gpu
