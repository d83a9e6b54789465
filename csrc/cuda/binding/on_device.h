// The frame of every operator on a CUDA device.
#pragma once
#include <torch/csrc/stable/accelerator.h>

#include <exception>
#include <stdexcept>
#include <string>

#include "torch_host.h"

namespace fusedlstm::cuda {

// Runs the body of an operator on a device. What it throws says so where the CUDA context is lost.
template <class Body>
auto on_device(int ordinal, Body body) {
  const torch::stable::accelerator::DeviceGuard guard(ordinal);
  try {
    return body();
  } catch (const std::exception& error) {
    const std::string text = lost_context(error.what(), ordinal);
    STD_TORCH_CHECK(text.empty(), text);
    // What Python would take for a ValueError.
    STD_TORCH_CHECK(!dynamic_cast<const std::invalid_argument*>(&error), error.what());
    throw;
  }
}

}  // namespace fusedlstm::cuda
