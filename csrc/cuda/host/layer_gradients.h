// The gradients of a layer that come after the recurrence: products over all steps.
#pragma once
#include "prepared_layer.h"

namespace fusedlstm::cuda {

// What the recurrence backward leaves behind; of an ensemble, with the members in front.
struct BackwardRecurrence {
  View d_gates;               // [D, N, 4H]
  View d_projected;           // [D, N, P], with a projection
  View d_reset_h, d_reset_c;  // [D, B, R], [D, B, H], in the accumulation dtype; null without resets
};

// Writes all gradients that are wanted but those of the initial state. Of one layer.
void finish_gradients(PreparedLayer& p, const BackwardRecurrence& r, const Incoming& in, const Gradients& grads);

}  // namespace fusedlstm::cuda
