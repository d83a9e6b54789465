// What registration.cpp registers of the CPU.
#pragma once

#include <torch/csrc/stable/library.h>

namespace fusedlstm::cpu {

void implement_layers(torch::stable::detail::StableLibrary& m);       // operators.cpp
void implement_planner(torch::stable::detail::StableLibrary& m);      // operators.cpp
void implement_recurrences(torch::stable::detail::StableLibrary& m);  // varied.cpp

}  // namespace fusedlstm::cpu
