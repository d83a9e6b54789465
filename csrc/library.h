// The schemas of the operators of every device.
#pragma once

#include <torch/csrc/stable/library.h>

namespace fusedlstm {

void define_operators(torch::stable::detail::StableLibrary& m);

}  // namespace fusedlstm
