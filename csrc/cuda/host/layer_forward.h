// The steps of a forward pass that a layer by itself and one of a stack have in common.
#pragma once
#include "prepared_layer.h"

namespace fusedlstm::cuda {

// What the kernels are told, but for the input product.
ForwardArgs forward_arguments(const PreparedLayer& p, const ForwardResults& r);

// W_ih x of the steps [a.rows.begin, a.rows.end) for one direction into pre_gates, acc [rows of these steps or more,
// GH], each member's by itself; and tells `a` where step t of batch row b stands in it.
void project_input(const PreparedLayer& p, int d, const View& pre_gates, ForwardArgs& a);

}  // namespace fusedlstm::cuda
