#include "launch_recurrence.cuh"

constinit const fusedlstm::cuda::Launchers fusedlstm::cuda::kFloat16Launchers = launchers<Float16Math>();
