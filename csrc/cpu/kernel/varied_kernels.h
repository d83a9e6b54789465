// The kernels of varied recurrences on one instruction set: included by the files of cpu/instances only.
#pragma once

#include "cpu/kernel_table.h"
#include "kernels.h"
#include "varied_backward.h"
#include "varied_forward.h"

namespace fusedlstm::cpu {

template <class K, class Cell>
constexpr RecurrenceKernels recurrence_kernels() {
  return {
      [](const VariedForwardArgs& args, const Plan& plan) {
        return VariedForward<K, Cell>(args, make_varied_cell<Cell>(args.is_relu), plan).workspace_bytes();
      },
      [](const VariedForwardArgs& args, const Plan& plan, Share& share, char* workspace) {
        VariedForward<K, Cell>(args, make_varied_cell<Cell>(args.is_relu), plan).run(share, workspace);
      },
      [](const VariedBackwardArgs& args, const Plan& plan) {
        return VariedBackward<K, Cell>(args, make_varied_cell<Cell>(args.is_relu), plan).workspace_bytes();
      },
      [](const VariedBackwardArgs& args, const Plan& plan, Share& share, char* workspace) {
        VariedBackward<K, Cell>(args, make_varied_cell<Cell>(args.is_relu), plan).run(share, workspace);
      },
  };
}

// Of one accumulation dtype, every cell.
template <class K>
constexpr VariedKernels varied_kernels() {
  return {recurrence_kernels<K, VariedLstm>(), recurrence_kernels<K, Unvaried<Gru>>(),
          recurrence_kernels<K, Unvaried<Rnn>>(), recurrence_kernels<K, NormedGru>()};
}

}  // namespace fusedlstm::cpu
