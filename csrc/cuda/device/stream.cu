// The pointwise kernels of STREAM, and what comes before and after any recurrence. One thread per element; nothing is
// shared between threads, so that there is nothing to synchronise.
#include <algorithm>

#include "backward_unit.cuh"
#include "elements.cuh"
#include "forward_unit.cuh"

namespace fusedlstm::cuda {
namespace {

template <class scalar_t, class Equations>
__global__ void forward_step_kernel(const __grid_constant__ ForwardArgs args,
                                    const __grid_constant__ ForwardStep state) {
  using acc_t = AccOf<scalar_t>;
  const int64_t H = args.rows.H;
  const Element own(args.rows.B, H);
  if (!own.exists) return;
  const int T = args.rows.T, s = static_cast<int>(state.step);
  const int64_t i = own.b * H + own.column;
  const bool projects = state.hidden != nullptr;  // then h belongs to forward_projected_kernel
  constexpr CellSizes kSizes = Equations::kSizes;
  auto* carried = &at<acc_t>(state.carried, own.b * kSizes.carried * H + own.column);
  ForwardUnit<scalar_t, Equations> unit(args, state.d, own.b, own.column);
  ForwardHidden<scalar_t> hidden(args, unit.clock, own.column);
  if (s < 0) {
    unit.start(args);
    if (!projects) hidden.start(args);
  } else {
    const Step now = step_of(args.rows, time_of(state.d, s, T));
    for (int k = 0; k < kSizes.carried; ++k) unit.carried[k] = carried[k * H];
    if (!projects) hidden.h = to_acc(at<scalar_t>(state.h, i));
    unit.prefetch(args, now);
    auto known = unit.known(Bias<scalar_t, Equations>(args, state.d, own.column));
    const bool runs = unit.clock.runs(now.t);
    if (runs)  // there are no sums of rows that a packed batch does not have
      for (int q = 0; q < kSizes.gates; ++q)
        known.sums[q] += at<acc_t>(state.sums, (int64_t{own.b} * kSizes.gates + q) * H + own.column);
    const auto y = unit.step(args, now.t, known, hidden.h);
    if (unit.saves(args)) unit.save(args, now, y);
    if (projects) {
      at<scalar_t>(state.hidden, i) = from_acc<scalar_t>(runs ? y.h : acc_t(0));
    } else {
      hidden.leave(now.t, y.h);
      hidden.store(now, hidden.first_element(args, now), y.h);
    }
  }
  if (s + 1 < T) {
    const bool is_next_reset = is_reset(args.rows, unit.clock, time_of(state.d, s + 1, T));
    if (is_next_reset) unit.reset(args);
    for (int k = 0; k < kSizes.carried; ++k) carried[k * H] = unit.carried[k];
    if (projects) return;
    if (is_next_reset) hidden.reset(args);
    at<scalar_t>(state.h, i) = from_acc<scalar_t>(hidden.h);
  } else {
    unit.finish(args);
    if (!projects) hidden.finish(args);
  }
}

template <class scalar_t>
__global__ void forward_projected_kernel(const __grid_constant__ ForwardArgs args,
                                         const __grid_constant__ ForwardStep state, const void* projected) {
  using acc_t = AccOf<scalar_t>;
  const int64_t R = args.rows.R;
  const Element own(args.rows.B, R);
  if (!own.exists) return;
  const int T = args.rows.T, s = static_cast<int>(state.step);
  const int64_t i = own.b * R + own.column;
  ForwardHidden<scalar_t> hidden(args, RowClock(args.rows, state.d, own.b, 0), own.column);
  if (s < 0) {
    hidden.start(args);
  } else {
    const Step now = step_of(args.rows, time_of(state.d, s, T));
    const acc_t value = hidden.clock.runs(now.t) ? at<acc_t>(projected, i) : acc_t(0);
    hidden.h = to_acc(at<scalar_t>(state.h, i));
    hidden.leave(now.t, value);
    hidden.store(now, hidden.first_element(args, now), value);
  }
  if (s + 1 < T) {
    if (is_reset(args.rows, hidden.clock, time_of(state.d, s + 1, T))) hidden.reset(args);
    at<scalar_t>(state.h, i) = from_acc<scalar_t>(hidden.h);
  } else {
    hidden.finish(args);
  }
}

// The gradient of h between two steps, brought to the one at position s; true if the row runs that step.
template <class scalar_t, class Equations>
__device__ __forceinline__ bool advance_hidden(const BackwardArgs& args, const BackwardStep& state, int s,
                                               BackwardHidden<scalar_t, Equations>& hidden, int64_t i) {
  using acc_t = AccOf<scalar_t>;
  const int T = args.rows.T;
  if (s == 0) {
    hidden.start(args);
  } else {
    const int before = time_of(state.d, T - s, T);
    hidden.d_h = at<acc_t>(state.d_h, i);
    hidden.leave(before, hidden.clock.runs(before) ? at<acc_t>(state.sums, i) : acc_t(0));
    if (is_reset(args.rows, hidden.clock, before)) hidden.store_cut(args, hidden.cut(true));
  }
  at<acc_t>(state.d_h, i) = hidden.d_h;
  if (s == T) {
    hidden.finish(args);
    return false;
  }
  const Step now = step_of(args.rows, time_of(state.d, T - 1 - s, T));
  hidden.prefetch(args, now);
  return hidden.clock.runs(now.t);
}

template <class scalar_t, class Equations>
__global__ void backward_step_kernel(const __grid_constant__ BackwardArgs args,
                                     const __grid_constant__ BackwardStep state) {
  using acc_t = AccOf<scalar_t>;
  const int64_t H = args.rows.H;
  const Element own(args.rows.B, H);
  if (!own.exists) return;
  const int T = args.rows.T, s = static_cast<int>(state.step);
  const int64_t i = own.b * H + own.column;
  const bool projects = state.d_projected != nullptr;  // then d_hidden has come through W_hr already
  constexpr CellSizes kSizes = Equations::kSizes;
  auto* d_carried = &at<acc_t>(state.d_carried, own.b * kSizes.carried * H + own.column);
  BackwardUnit<scalar_t, Equations> unit(args, state.d, own.b, own.column);
  BackwardHidden<scalar_t, Equations> hidden(unit.clock, own.column);
  const bool runs =
      projects ? s < T && hidden.clock.runs(time_of(state.d, T - 1 - s, T)) : advance_hidden(args, state, s, hidden, i);
  if (s == 0)
    unit.start(args);
  else
    for (int k = 0; k < kSizes.carried; ++k) unit.d_carried[k] = d_carried[k * H];
  if (s == T) {
    unit.finish(args);
    return;
  }
  const Step now = step_of(args.rows, time_of(state.d, T - 1 - s, T));
  const bool starts_anew = is_reset(args.rows, unit.clock, now.t);
  if (runs) {
    unit.prefetch(args, now, s + 1 < T ? step_of(args.rows, time_of(state.d, T - 2 - s, T)) : Step{});
    if (starts_anew || unit.clock.first(now.t)) unit.enter(args, starts_anew);
    typename BackwardUnit<scalar_t, Equations>::Gradients gradients;
    const acc_t direct =
        unit.step(args, now.t, unit.slopes(args), projects ? at<acc_t>(state.d_hidden, i) : hidden.total(),
                  unit.d_from_outside, gradients);
    unit.store(args, now, unit.first_element(args, now), gradients);
    if constexpr (kSizes.takes_h) {
      hidden.keep(now.t, direct);
      at<acc_t>(state.d_h, i) = hidden.d_h;
    }
  }
  for (int k = 0; k < kSizes.carried; ++k) {
    if (starts_anew) unit.store_cut(args, k, unit.cut(k, true));
    d_carried[k * H] = unit.d_carried[k];
  }
}

template <class scalar_t, class Equations>
__global__ void backward_projected_kernel(const __grid_constant__ BackwardArgs args,
                                          const __grid_constant__ BackwardStep state) {
  const int64_t R = args.rows.R;
  const Element own(args.rows.B, R);
  if (!own.exists) return;
  const int T = args.rows.T, s = static_cast<int>(state.step);
  BackwardHidden<scalar_t, Equations> hidden(RowClock(args.rows, state.d, own.b, 0), own.column);
  if (advance_hidden(args, state, s, hidden, own.b * R + own.column)) {
    const int64_t row = row_of(args.rows, time_of(state.d, T - 1 - s, T), own.b);
    at<scalar_t>(state.d_projected, row * R + own.column) = from_acc<scalar_t>(hidden.total());
  }
}

template <class scalar_t>
__global__ void previous_states_kernel(const __grid_constant__ RowStates rows, const void* output, void* previous) {
  const int64_t R = rows.R;
  const Element own(rows.B, R);
  if (!own.exists) return;
  const int d = blockIdx.z;
  const RowClock clock(rows, d, own.b, 0);
  for (int t = blockIdx.y; t < clock.length; t += gridDim.y) {
    scalar_t h;
    if (is_reset(rows, clock, t))
      h = from_acc<scalar_t>(state_or_zero<scalar_t>(rows.reset_state[0], rows.R, rows, clock, own.column));
    else if (clock.first(t))
      h = from_acc<scalar_t>(state_or_zero<scalar_t>(rows.initial[0], rows.R, rows, clock, own.column));
    else
      h = at<scalar_t>(output, (row_of(rows, clock.previous(t), own.b) * rows.D + d) * R + own.column);
    at<scalar_t>(previous, (d * rows.N + row_of(rows, t, own.b)) * R + own.column) = h;
  }
}

template <class scalar_t>
__global__ void running_rows_kernel(const __grid_constant__ RowStates rows, int64_t columns, const void* all,
                                    void* runs) {
  const Element own(rows.B, columns);
  if (!own.exists) return;
  const int length = length_of(rows, own.b);
  for (int t = blockIdx.y; t < rows.T; t += gridDim.y) {
    const int64_t i = row_of(rows, t, own.b) * columns + own.column;
    at<scalar_t>(runs, i) = t < length ? at<scalar_t>(all, i) : scalar_t{};
  }
}

template <class scalar_t, class Equations>
__global__ void hidden_states_kernel(const __grid_constant__ LayerArgs args, const void* saved, const void* carried,
                                     void* hidden) {
  using acc_t = AccOf<scalar_t>;
  constexpr CellSizes kSizes = Equations::kSizes;
  const RowStates& rows = args.rows;
  const int64_t H = rows.H;
  const Element own(rows.B, H);
  if (!own.exists) return;
  const int d = blockIdx.z;
  const RowClock clock(rows, d, own.b, 0);
  for (int t = blockIdx.y; t < clock.length; t += gridDim.y) {
    const int64_t row = d * rows.N + row_of(rows, t, own.b);
    acc_t of_saved[at_least_one(kSizes.saved)], of_carried[at_least_one(kSizes.carried)];
    for (int k = 0; k < kSizes.saved; ++k)
      of_saved[k] = to_acc(at<scalar_t>(saved, (row * kSizes.saved + k) * H + own.column));
    for (int k = 0; k < kSizes.carried; ++k)
      of_carried[k] = at<acc_t>(carried, (row * kSizes.carried + k) * H + own.column);
    at<scalar_t>(hidden, row * H + own.column) = from_acc<scalar_t>(
        equations_of<Equations>(args).template hidden<ActivationMath<scalar_t>>(of_saved, of_carried));
  }
}

// Of one launch: its parameters have 4 KiB.
constexpr int kValues = 448;
struct Values {
  int64_t value[kValues];
};

__global__ void store_values_kernel(const __grid_constant__ Values values, int count, int64_t* to) {
  const int i = blockIdx.x * kBlock + threadIdx.x;
  if (i < count) to[i] = values.value[i];
}

}  // namespace

cudaError_t launch_forward_step(const ForwardArgs& args, const ForwardStep& state, cudaStream_t stream) {
  return with_types(args, [&](auto scalar, auto equations) {
    return launch(forward_step_kernel<decltype(scalar), decltype(equations)>, one_thread_each(args.rows.B, args.rows.H),
                  stream, args, state);
  });
}

cudaError_t launch_forward_projected(const ForwardArgs& args, const ForwardStep& state, const void* projected,
                                     cudaStream_t stream) {
  return with_scalar(args.dtype, [&](auto scalar) {
    return launch(forward_projected_kernel<decltype(scalar)>, one_thread_each(args.rows.B, args.rows.R), stream, args,
                  state, projected);
  });
}

cudaError_t launch_backward_step(const BackwardArgs& args, const BackwardStep& state, cudaStream_t stream) {
  return with_types(args, [&](auto scalar, auto equations) {
    return launch(backward_step_kernel<decltype(scalar), decltype(equations)>,
                  one_thread_each(args.rows.B, args.rows.H), stream, args, state);
  });
}

cudaError_t launch_backward_projected(const BackwardArgs& args, const BackwardStep& state, cudaStream_t stream) {
  return with_projecting_types(args, [&](auto scalar, auto equations) {
    return launch(backward_projected_kernel<decltype(scalar), decltype(equations)>,
                  one_thread_each(args.rows.B, args.rows.R), stream, args, state);
  });
}

cudaError_t launch_store_values(const int64_t* values, int64_t count, int64_t* to, cudaStream_t stream) {
  for (int64_t first = 0; first < count; first += kValues) {
    const int part = static_cast<int>(count - first < kValues ? count - first : kValues);
    Values some{};
    std::copy_n(values + first, part, some.value);
    const cudaError_t error = launch(store_values_kernel, one_thread_each(1, part), stream, some, part, to + first);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t launch_previous_states(const RowStates& rows, Dtype dtype, const void* output, void* previous,
                                   cudaStream_t stream) {
  return with_scalar(dtype, [&](auto scalar) {
    return launch(previous_states_kernel<decltype(scalar)>, one_thread_each_step(rows, rows.R, rows.D), stream, rows,
                  output, previous);
  });
}

cudaError_t launch_running_rows(const RowStates& rows, Dtype dtype, int64_t columns, const void* all, void* runs,
                                cudaStream_t stream) {
  return with_scalar(dtype, [&](auto scalar) {
    return launch(running_rows_kernel<decltype(scalar)>, one_thread_each_step(rows, columns, 1), stream, rows, columns,
                  all, runs);
  });
}

cudaError_t launch_hidden_states(const LayerArgs& layer, const void* saved, const void* carried, void* hidden,
                                 cudaStream_t stream) {
  const RowStates& rows = layer.rows;
  return with_projecting_types(layer, [&](auto scalar, auto equations) {
    return launch(hidden_states_kernel<decltype(scalar), decltype(equations)>,
                  one_thread_each_step(rows, rows.H, rows.D), stream, layer, saved, carried, hidden);
  });
}

}  // namespace fusedlstm::cuda
