// What the machine around a cell must know of it.
//
// Includes nothing. A cell turns, for each hidden unit, the sums W_ih x + b_ih and W_hh h + b_hh of its gates and its
// states before a step into its states after it. `h` is its first state, the only one that enters products.
#pragma once

namespace fusedlstm {

struct CellSizes {
  int gates;      // blocks of H rows in weight_ih and weight_hh
  int joined;     // the first so many gates take the sum of both parts; of the others the cell takes each apart
  int states;     // h, and what else goes from step to step
  int saved;      // values per unit and step that backward needs beside the states, in the dtype of the tensors
  int carried;    // states beside h that are kept for every step, in the accumulation dtype
  bool takes_h;   // a step takes h itself, beside its product; backward has a gradient for it
  bool reads_h;   // backward reads the h that the step made
  bool projects;  // a layer may have weight_hr

  constexpr int apart() const { return gates - joined; }
  constexpr bool operator==(const CellSizes&) const = default;
};

// Of the cells there are, the most states. The first is h, [D, B, R]; others are [D, B, H].
inline constexpr int kMaxStates = 2;

}  // namespace fusedlstm
