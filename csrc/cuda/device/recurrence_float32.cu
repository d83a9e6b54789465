#include "launch_recurrence.cuh"

constinit const fusedlstm::cuda::Launchers fusedlstm::cuda::kFloat32Launchers = launchers<Float32Math>();
