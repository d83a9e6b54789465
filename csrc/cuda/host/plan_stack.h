// How the layers of a stack run: one after another, or several abreast, each a part of the steps behind the one below.
//
// Plain C++.
#pragma once
#include "plan_request.h"

namespace fusedlstm::cuda {

// The plan of one layer as that of all p.L of them, with the time of all: with the best numbers of layers abreast and
// of parts by the model, and with those that are requested, as far as they are possible.
Plan best_stack(const Plan& layer, const Problem& p, const Device& d);
Plan forced_stack(const Plan& layer, const Problem& p, const Device& d, const Request& request);

}  // namespace fusedlstm::cuda
