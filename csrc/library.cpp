// The schemas of the operators: the narrow waist between Python and the kernels of every device.
//
// One call is one layer with all its directions and time steps, so that compiled and exported graphs hold one node
// per layer. Shapes, dtypes and meanings are written at `lstm_layer` in fusedlstm/reference.py; kernels are registered
// by cpu/operators.cpp and cuda/binding/operators.cpp, fake kernels and autograd by fusedlstm/ops.py and _autograd.py.
//
// A second copy of the library in one process (the Python package refuses it) must not end the process: hence a
// fragment, and hence the `catch`, since an exception that leaves a static constructor would.
#include <torch/csrc/stable/library.h>

#include <cstdio>
#include <exception>

// clang-format off
#define FUSEDLSTM_LAYER_ARGUMENTS                                                                       \
  "Tensor input, Tensor h_0, Tensor c_0, "                                                              \
  "Tensor[] weight_ih, Tensor[] weight_hh, Tensor[] bias_ih, Tensor[] bias_hh, Tensor[] weight_hr, "    \
  "Tensor? batch_sizes, Tensor? lengths, Tensor? reset, Tensor? reset_h, Tensor? reset_c, "             \
  "bool allow_tf32"
// clang-format on

STABLE_TORCH_LIBRARY_FRAGMENT(fusedlstm, m) {
  try {
    m.def("lstm_layer(" FUSEDLSTM_LAYER_ARGUMENTS
          ") -> (Tensor output, Tensor h_n, Tensor c_n, Tensor gates, Tensor cell_states)");
    m.def("lstm_layer_inference(" FUSEDLSTM_LAYER_ARGUMENTS ") -> (Tensor output, Tensor h_n, Tensor c_n)");
    m.def(
        "lstm_layer_backward(Tensor? d_output, Tensor? d_h_n, Tensor? d_c_n, Tensor? "
        "d_cell_states, " FUSEDLSTM_LAYER_ARGUMENTS
        ", Tensor output, Tensor gates, Tensor cell_states, bool[] needs) -> "
        "(Tensor d_input, Tensor d_h_0, Tensor d_c_0, Tensor[] d_weight_ih, Tensor[] d_weight_hh, "
        "Tensor[] d_bias_ih, Tensor[] d_bias_hh, Tensor[] d_weight_hr, "
        "Tensor d_reset_h, Tensor d_reset_c)");
    // What the CPU kernels are and why (JSON), and the choice of instruction set and plan by name ("" is automatic).
    m.def("_cpu_info() -> str");
    m.def("_cpu_force(str isa, str plan) -> ()");
  } catch (const std::exception& error) {
    std::fprintf(stderr,
                 "fusedlstm: its operators could not be defined; is another copy of this library loaded? (%s)\n",
                 error.what());
  }
}
