// Runs the shares of one layer on torch's own thread pool, with scratch memory that outlives the call.
#pragma once

#include <cstdint>

#include "layer.h"

namespace fusedlstm::cpu {

// How many threads torch would use now.
int pool_threads();

// Calls body(share, workspace) for every share of a team of `threads`, each share in a thread of torch's pool; all
// shares run at the same time and may meet. One thread runs at once, without the pool. `workspace` is 64-byte aligned.
void run_team(int threads, int64_t workspace_bytes, void (*body)(void* context, Share, char* workspace), void* context);

}  // namespace fusedlstm::cpu
