#include "launch_recurrence.cuh"

constinit const fusedlstm::cuda::Launchers fusedlstm::cuda::kBFloat16Launchers = launchers<BFloat16Math>();
