// The planner's model: what a pass takes, estimated from the sizes and from what cost.h knows of an architecture.
//
// Plain C++.
#pragma once
#include "plan.h"

namespace fusedlstm::cuda {

// The recurrence of one layer, of all members, by a resident kernel that fits, and by STREAM.
double resident_microseconds(const KernelShape& shape, const Problem& p, const Device& d);
double stream_microseconds(const Problem& p, const Device& d);

// What so many SMs take for the product between two layers of a stack over all steps: of the one below's output with
// weight_ih forward, of its gates' gradients with it backward.
double layer_product_microseconds(const Problem& p, const Device& d, int sms);

}  // namespace fusedlstm::cuda
