// A problem of the planner by names, as Python has it.
//
// Plain C++. Also compiled into the Python module `_core`.
#pragma once
#include <stdexcept>
#include <string>

#include "plan.h"

namespace fusedlstm::cuda {

inline Dtype dtype_from_name(const std::string& name) {
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kFloat64, Dtype::kBFloat16, Dtype::kFloat16})
    if (name == dtype_name(dtype)) return dtype;
  throw std::invalid_argument("dtype: expected float32, float64, bfloat16 or float16, got '" + name + "'");
}

// Of what kind a cell is, by the name that its operators have.
inline const NamedCell& cell_from_name(const std::string& name) {
  std::string known;
  for (const NamedCell& cell : kCells) {
    if (name == cell.name) return cell;
    known += std::string(known.empty() ? "" : ", ") + cell.name;
  }
  throw std::invalid_argument("cell: expected one of " + known + ", got '" + name + "'");
}

// Throws std::invalid_argument for sizes that no layer has.
inline Problem named_problem(int64_t T, int64_t B, int64_t H, const std::string& cell, const std::string& dtype,
                             int64_t proj_size, int64_t directions, int64_t members, bool allow_tf32, bool backward,
                             int64_t layers = 1) {
  if (T < 1 || B < 1 || H < 1 || members < 1 || layers < 1 || directions < 1 || directions > 2 || proj_size < 0)
    throw std::invalid_argument(
        "plan: expected T, B, H, members >= 1, layers >= 1, proj_size >= 0 and 1 or 2 directions, got T=" +
        std::to_string(T) + " B=" + std::to_string(B) + " H=" + std::to_string(H) +
        " proj_size=" + std::to_string(proj_size) + " directions=" + std::to_string(directions) +
        " members=" + std::to_string(members) + " layers=" + std::to_string(layers));
  return {cell_from_name(cell).kind,
          T,
          B,
          H,
          proj_size,
          static_cast<int>(directions),
          static_cast<int>(members),
          dtype_from_name(dtype),
          allow_tf32,
          backward ? Pass::kBackward : Pass::kForward,
          static_cast<int>(layers)};
}

}  // namespace fusedlstm::cuda
