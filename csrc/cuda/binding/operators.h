// What registration.cpp registers of CUDA.
#pragma once

#include <torch/csrc/stable/library.h>

namespace fusedlstm::cuda {

void implement_layers(torch::stable::detail::StableLibrary& m);       // operators.cpp
void implement_recurrences(torch::stable::detail::StableLibrary& m);  // varied.cpp
void define_planner(torch::stable::detail::StableLibrary& m);         // plan_operators.cpp
void implement_planner(torch::stable::detail::StableLibrary& m);      // plan_operators.cpp

}  // namespace fusedlstm::cuda
