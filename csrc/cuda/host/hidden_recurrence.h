// A layer with a projection by a resident kernel, which knows of none.
//
// What a step puts out, h = W_hr hidden, enters the gates of the next one as W_hh h = (W_hh W_hr) hidden. So the
// recurrence goes from hidden to hidden like one without a projection, by the effective weight W_hh W_hr [GH, H]; and
// what has to do with h itself is products over all steps, before or after it. A row's initial h, and one that it is
// reset to, is no projection of anything: hidden starts from zeros there, and W_hh h is added to W_ih x of that step.
//
// Of no ensemble. The effective weight is rounded to the dtype, and h is not on its way to the next step: as many
// roundings as STREAM has, and as large an error.
#pragma once
#include "layer_gradients.h"

namespace fusedlstm::cuda {

// a: with the input's products of all directions, which are changed. Launches the chosen kernel, or what
// launch_resident replaces it by. False: there is none, and nothing was run.
bool forward_by_hidden(PreparedLayer& p, Choice& choice, ForwardArgs a, const ForwardResults& results);

// The same backward, of arguments that stay as they are. r: with memory for all that it has.
bool backward_by_hidden(PreparedLayer& p, Choice& choice, BackwardArgs a, const Incoming& in,
                        const BackwardRecurrence& r);

}  // namespace fusedlstm::cuda
