// Second order of steps on the CPU: what is between products, and of one step as a cell has it all of it.
#pragma once

#include "call/step_arguments.h"
#include "cells/all.h"

namespace fusedlstm::cpu {

// What the operators of these arguments return.
StepsResults second_order_of_steps(const NamedCell& cell, StepsArguments& arguments);
FoundGradients second_order_of_cell(const NamedCell& cell, StepSecondOrderArguments& arguments);
FoundGradients gradients_with_sums(const NamedCell& cell, StepSumsBackwardArguments& arguments);

}  // namespace fusedlstm::cpu
