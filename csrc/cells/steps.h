// Second order of steps that do not depend on one another, each a row of one batch: what is between the products that
// Python makes (fusedlstm/_second_order_step.py), element by element, on every device.
#pragma once

#include <cstdint>

#include "second_order.h"

namespace fusedlstm {

// All dense, float32 or float64; of H values for each row, of gates' sums GH. Arrays have an item for each state.
struct StepsArgs {
  int64_t rows, hidden;
  bool is_relu;
  // h before the steps is read of a cell that takes it, h after them of one whose derivative reads it.
  const void *before[kMaxStates], *after[kMaxStates], *saved;
  // Tangents; null: zeros. hidden_sums: the part of W_hh h, only of a cell with gates that are apart.
  const void *sums, *hidden_sums, *before_tangent[kMaxStates];
  // Gradients that arrive at the states, and how that of h moves; null: zeros.
  const void *d_after[kMaxStates], *d_h_tangent;
  // Results; null: not asked for. d_before: what does not go through products, of h only where the cell takes it.
  void* after_tangent[kMaxStates];
  void *d_sums, *d_sums_tangent, *d_hidden_sums, *d_hidden_sums_tangent;
  void *d_before[kMaxStates], *d_before_tangent[kMaxStates];
};

// One element, or a vector of them. read(from, width, part): of a row of `width` parts of H values; zeros of null.
// write(to, v, width, part): nothing to null.
template <class Math, class V, class Cell, class Read, class Write>
constexpr void second_order_of_element(const Cell& cell, const StepsArgs& a, Read read, Write write) {
  constexpr CellSizes kSizes = Cell::kSizes;
  constexpr int G = kSizes.gates;
  Known<V, kSizes> known{};
  Moving<V, kSizes> moving{};
  for (int i = 0; i < kSizes.saved; ++i) known.saved[i] = read(a.saved, kSizes.saved, i);
  known.h_before = read(a.before[0], 1, 0);
  known.h = read(a.after[0], 1, 0);
  moving.h_before = read(a.before_tangent[0], 1, 0);
  moving.d_h = read(a.d_after[0], 1, 0);
  moving.d_h_tangent = read(a.d_h_tangent, 1, 0);
  for (int i = 0; i < kSizes.carried; ++i) {
    known.carried_before[i] = read(a.before[1 + i], 1, 0);
    known.carried[i] = read(a.after[1 + i], 1, 0);
    moving.carried_before[i] = read(a.before_tangent[1 + i], 1, 0);
    moving.d_carried[i] = read(a.d_after[1 + i], 1, 0);
  }
  for (int gate = 0; gate < G; ++gate) {
    const V from_input = read(a.sums, G, gate), from_hidden = read(a.hidden_sums, G, gate);
    if (gate < kSizes.joined) {
      moving.sums.joined[gate] = from_input + from_hidden;
    } else {
      moving.sums.from_input[gate - kSizes.joined] = from_input;
      moving.sums.from_hidden[gate - kSizes.joined] = from_hidden;
    }
  }

  const auto found = second_order<Math>(cell, known, moving);
  const auto& gradients = found.gradients;
  write(a.after_tangent[0], found.after.h, 1, 0);
  write(a.d_before[0], gradients.h_before.value, 1, 0);
  write(a.d_before_tangent[0], gradients.h_before.tangent, 1, 0);
  for (int i = 0; i < kSizes.carried; ++i) {
    write(a.after_tangent[1 + i], found.after.carried[i], 1, 0);
    write(a.d_before[1 + i], gradients.carried_before[i].value, 1, 0);
    write(a.d_before_tangent[1 + i], gradients.carried_before[i].tangent, 1, 0);
  }
  for (int gate = 0; gate < G; ++gate) {
    write(a.d_sums, gradients.from_input[gate].value, G, gate);
    write(a.d_sums_tangent, gradients.from_input[gate].tangent, G, gate);
    write(a.d_hidden_sums, gradients.from_hidden[gate].value, G, gate);
    write(a.d_hidden_sums_tangent, gradients.from_hidden[gate].tangent, G, gate);
  }
}

}  // namespace fusedlstm
