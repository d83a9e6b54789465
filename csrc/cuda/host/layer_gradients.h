// The gradients of a layer that come after the recurrence: products over all steps.
#pragma once
#include "prepared_layer.h"

namespace fusedlstm::cuda {

// What the recurrence backward leaves behind; of an ensemble, with the members in front.
struct BackwardRecurrence {
  View d_from_hidden, d_from_input;  // [D, N, GH]; the same where the cell takes no gate apart
  View d_projected;                  // [D, N, P], with a projection
  View d_reset_state[kMaxStates];    // h [D, B, R], others [D, B, H], in the accumulation dtype; null without resets
};

// Writes all gradients that are wanted but those of the initial state. Of one layer.
void finish_gradients(PreparedLayer& p, const BackwardRecurrence& r, const Incoming& in, const Gradients& grads);

}  // namespace fusedlstm::cuda
