// The kernels of CUDA are registered in a namespace: as cpu/registration.cpp, for this library.
#include "operators.h"

STABLE_TORCH_LIBRARY_FRAGMENT(FUSEDLSTM_NAMESPACE, m) {
  fusedlstm::cuda::define_planner(m);
}

STABLE_TORCH_LIBRARY_IMPL(FUSEDLSTM_NAMESPACE, CUDA, m) {
  fusedlstm::cuda::implement_layers(m);
  fusedlstm::cuda::implement_recurrences(m);
}

STABLE_TORCH_LIBRARY_IMPL(FUSEDLSTM_NAMESPACE, CompositeExplicitAutograd, m) {
  fusedlstm::cuda::implement_planner(m);
}
