// What FUSEDLSTM_PLAN asks for, taken apart.
//
// Plain C++.
#pragma once
#include <optional>
#include <string>

#include "plan.h"

namespace fusedlstm::cuda {

struct Request {
  std::optional<Transport> transport;    // nothing: any
  int units = 0, batch_rows = 0, k = 0;  // 0: any
  int abreast = 0, parts = 0;            // 0: as many as the model thinks best

  // Whether it says which kernel is to run, and not only how the layers of a stack do.
  bool names_kernel() const { return transport.has_value(); }
};

// Throws std::invalid_argument where it is none.
Request parse_request(const std::string& request);

}  // namespace fusedlstm::cuda
