// Runs the shares of one layer on torch's own thread pool, with scratch memory that outlives the call.
#pragma once

#include <cstdint>

#include "division.h"

namespace fusedlstm::cpu {

// How many threads torch would use now.
int pool_threads();

// Whether teams get all the threads that they can use, whatever else runs, in place of what run_team says: for tests.
void insist_on_threads(bool is_so);

// Calls body(share, workspace) for all `shares` of a layer, in threads of torch's pool, which run at the same time and
// may meet. There are fewer threads than shares where other calls or other processes use the CPUs; a thread then has
// several shares, and results stay the same bit by bit. One thread runs at once, without the pool. `workspace` is
// 64-byte aligned. `body` throws nothing. last_meeting: the team dissolves there at the latest; 0 for no such limit.
void run_team(int shares, int last_meeting, int64_t workspace_bytes,
              void (*body)(void* context, Share, char* workspace), void* context);

}  // namespace fusedlstm::cpu
