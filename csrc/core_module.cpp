// The Python module `fusedlstm._core`: what can be asked without torch and without a GPU.
// It never registers operators: those live in libraries that depend on no version of Python.
#include <pybind11/pybind11.h>

#include "cuda/binding/plan_bindings.h"

namespace py = pybind11;

PYBIND11_MODULE(_core, m) {
  m.doc() = "Launch planner and facts about this build.";
  m.attr("version") = FUSEDLSTM_VERSION;
  m.attr("compiler") = __VERSION__;
  m.attr("cpp_standard") = static_cast<long>(__cplusplus);
  fusedlstm::cuda::bind_plan(m);
}
