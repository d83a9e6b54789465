// Which kernels run a pass of a recurrence with variants (varied.h): those of single steps, between products of the
// library, or one that keeps weight_hh on the chip.
//
// Plain C++. A value as plan.h has of a plain layer, and made likewise.
#pragma once
#include <string>

#include "cells/varied.h"
#include "plan.h"

namespace fusedlstm::cuda {

struct VariedProblem {
  Problem layer;  // one direction of one layer without projection
  bool has_norm;
  constexpr VariedKind kind() const { return varied_kind(layer.cell, has_norm); }
};

struct VariedPlan {
  VariedProblem problem;
  Transport transport;  // kStream or kLocal
  int64_t smem_bytes;   // of a block of LOCAL; else 0
  double microseconds;  // by the model: an estimate to choose by, never a result
  Misfit misfit{};      // why LOCAL does not fit; kNone if it does
  bool is_forced = false;
};

// The cheaper one by the model of those that fit; STREAM always fits. request: as FUSEDLSTM_PLAN; "stream" and "local"
// force the choice where there is one. What else it names are kernels of plain layers. is_refused: whether the device
// has refused LOCAL. Throws std::invalid_argument with the reason if LOCAL is forced and does not fit.
VariedPlan make_varied_plan(const VariedProblem& problem, const Device& device, const std::string& request,
                            bool is_refused = false);

// One line: "lstm with variants, local forward, 16 CTAs of a row, 155392 bytes of shared memory, estimated 206 us", or
// with STREAM and why it is not LOCAL.
std::string to_string(const VariedPlan& plan);

}  // namespace fusedlstm::cuda
