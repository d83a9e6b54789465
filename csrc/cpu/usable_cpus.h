// How many threads can run at once.
#pragma once

namespace fusedlstm::cpu {

// The CPUs that the calling thread may run on, and no more than the quota of the process's control group; at least 1.
// A set of CPUs may change while the process runs; the quota is read once.
int usable_cpus();

}  // namespace fusedlstm::cpu
