// Kernels of one thread for each element of a matrix: which element, how many threads, and in which types.
#pragma once
#include "rows.cuh"

namespace fusedlstm::cuda {

inline constexpr int kBlock = 256;

// Element of a [rows of the batch, columns] matrix that this thread owns.
struct Element {
  int b, column;
  bool exists;

  __device__ __forceinline__ Element(int64_t batch, int64_t columns) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x;
    exists = i < batch * columns;
    b = static_cast<int>(exists ? i / columns : 0);
    column = static_cast<int>(exists ? i % columns : 0);
  }
};

inline LaunchConfig one_thread_each(int64_t rows, int64_t columns) {
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>((rows * columns + kBlock - 1) / kBlock));
  config.block = dim3(kBlock);
  return config;
}

// x covers one step, y takes the steps in turns, z is the direction.
inline LaunchConfig one_thread_each_step(const RowStates& rows, int64_t columns, int directions) {
  constexpr int kMaxGridY = 65535;
  LaunchConfig config = one_thread_each(rows.B, columns);
  config.grid.y = static_cast<unsigned>(rows.T < kMaxGridY ? rows.T : kMaxGridY);
  config.grid.z = directions;
  return config;
}

// Calls f with a value of the dtype's scalar_t and one of the cell's equations.
template <class F>
cudaError_t with_types(const LayerArgs& args, F f) {
  return with_scalar(args.dtype, [&](auto scalar) {
    switch (args.cell) {
      case CellKind::kGru:
        return f(scalar, Gru{});
      case CellKind::kRnn:
        return f(scalar, Rnn{});
      case CellKind::kLstm:
        break;
    }
    return f(scalar, Lstm{});
  });
}

// The same for kernels of cells that a layer may project.
template <class F>
cudaError_t with_projecting_types(const LayerArgs& args, F f) {
  return with_types(args, [&](auto scalar, auto equations) {
    if constexpr (decltype(equations)::kSizes.projects)
      return f(scalar, equations);
    else
      return cudaErrorInvalidValue;
  });
}

}  // namespace fusedlstm::cuda
