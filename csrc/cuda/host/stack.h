// Layers on top of each other on a CUDA device, several abreast where the plan says so.
//
// No torch.
#pragma once
#include <span>

#include "layer.h"

namespace fusedlstm::cuda {

// Layers of a stack, of the sizes of one another but for the input of the lowest. As run_forward and run_backward of
// one after the other, and bit for bit so if the kernel is the same and a row of a matrix product does not depend on
// how many rows there are. choice: of all layers, as choose() makes it, and as run_forward of one has it.

// The lowest first, each with the output of the one before as its input.
void run_forward(Host& host, std::span<const Layer> layers, std::span<const ForwardResults> results, Choice& choice);

// The uppermost first. `in` has d_output of that one alone, and `grads` the gradient of the input of the last alone:
// what goes from layer to layer has memory of the host.
void run_backward(Host& host, std::span<const Layer> layers, std::span<const Incoming> in,
                  std::span<const Gradients> grads, Choice& choice);

}  // namespace fusedlstm::cuda
