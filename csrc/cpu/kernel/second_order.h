// Second order of independent steps, by vectors.
#pragma once

#include "cells/steps.h"
#include "cpu/division.h"
#include "pack.h"

namespace fusedlstm::cpu {

template <class K, class Cell>
void second_order_of_steps(const Cell& cell, const StepsArgs& args, Range rows) {
  using V = typename K::V;
  using acc = typename K::acc;
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    for (int64_t u = 0; u < args.hidden; u += K::kLanes) {
      const auto at = [&](int width, int part) FUSEDLSTM_LAMBDA { return (row * width + part) * args.hidden + u; };
      second_order_of_element<typename K::Math, V>(
          cell, args,
          [&](const void* from, int width, int part) FUSEDLSTM_LAMBDA {
            return from ? load_some<V>(static_cast<const acc*>(from) + at(width, part), args.hidden - u) : V{};
          },
          [&](void* to, V v, int width, int part) FUSEDLSTM_LAMBDA {
            if (to) store_some(static_cast<acc*>(to) + at(width, part), v, args.hidden - u);
          });
    }
  }
}

}  // namespace fusedlstm::cpu
