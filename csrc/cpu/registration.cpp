// The operators and their kernels of the CPU are registered in a namespace. The only file of this library that has it
// compiled in, and short: every package for Hugging Face's `kernels` compiles it anew.
//
// FUSEDLSTM_NAMESPACE is a word that the build defines (native_build.py), since torch's macros take no value:
// `fusedlstm`, or what such a package has in its place.
#include "library.h"
#include "operators.h"

STABLE_TORCH_LIBRARY_FRAGMENT(FUSEDLSTM_NAMESPACE, m) {
  fusedlstm::define_operators(m);
}

STABLE_TORCH_LIBRARY_IMPL(FUSEDLSTM_NAMESPACE, CPU, m) {
  fusedlstm::cpu::implement_layers(m);
  fusedlstm::cpu::implement_recurrences(m);
}

STABLE_TORCH_LIBRARY_IMPL(FUSEDLSTM_NAMESPACE, CompositeExplicitAutograd, m) {
  fusedlstm::cpu::implement_planner(m);
}
