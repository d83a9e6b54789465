#include "launch_recurrence.cuh"

constinit const fusedlstm::cuda::Launchers fusedlstm::cuda::kTf32Launchers = launchers<Tf32Math>();
