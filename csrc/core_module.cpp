// The Python module `fusedlstm._core`: what can be asked without torch and without a GPU.
// It never registers operators: those live in libraries that depend on no version of Python.
#include <pybind11/pybind11.h>

#if __has_include("cuda/plan_bindings.h")
#include "cuda/plan_bindings.h"
#endif

namespace py = pybind11;

PYBIND11_MODULE(_core, m) {
  m.doc() = "Launch planner and facts about this build.";
  m.attr("version") = FUSEDLSTM_VERSION;
  m.attr("compiler") = __VERSION__;
  m.attr("cpp_standard") = static_cast<long>(__cplusplus);
#if __has_include("cuda/plan_bindings.h")
  bind_plan(m);
#endif
}
