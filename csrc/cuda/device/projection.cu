// What has to do with h itself where a resident kernel runs the recurrence of what is projected
// (cuda/host/hidden_recurrence.h): states that rows enter and leave with, and gradients of h. One thread per element.
#include <algorithm>

#include "backward_unit.cuh"
#include "elements.cuh"

namespace fusedlstm::cuda {
namespace {

// The step that the row runs first, if it runs any.
__device__ __forceinline__ int first_time(const RowClock& clock) {
  return clock.d == 0 ? 0 : std::max(clock.length - 1, 0);
}

// Whether a state is reset after the last step that its row runs. Resets are of one direction.
__device__ __forceinline__ bool is_reset_after_end(const RowStates& rows, const RowClock& clock) {
  if (!rows.reset) return false;
  for (int t = clock.length; t < rows.T; ++t)
    if (is_reset(rows, clock, t)) return true;
  return false;
}

template <class acc_t>
__global__ void entered_states_kernel(const __grid_constant__ ForwardArgs args, int d, int64_t width,
                                      const void* of_initial, const void* of_reset) {
  const RowStates& rows = args.rows;
  const Element own(rows.B, width);
  if (!own.exists) return;
  const RowClock clock(rows, d, own.b, 0);
  const int64_t i = own.b * width + own.column;
  const auto add = [&](int t, const void* products) {
    const int64_t row = strided_row(rows, step_of(rows, t), args.pre_gates_stride_t, args.pre_gates_stride_b) +
                        element(own.b, args.pre_gates_stride_b, own.column);
    at<acc_t>(args.pre_gates[d], row) += at<acc_t>(products, i);
  };
  const int first = first_time(clock);
  if (blockIdx.y == 0 && clock.runs(first) && !is_reset(rows, clock, first)) add(first, of_initial);
  if (!of_reset) return;
  for (int t = blockIdx.y; t < clock.length; t += gridDim.y)
    if (is_reset(rows, clock, t)) add(t, of_reset);
}

template <class scalar_t>
__global__ void last_states_kernel(const __grid_constant__ RowStates rows, const void* output, void* last) {
  const int64_t R = rows.R;
  const Element own(rows.B, R);
  if (!own.exists) return;
  const int d = blockIdx.z;
  const RowClock clock(rows, d, own.b, 0);
  scalar_t h;
  if (is_reset_after_end(rows, clock))
    h = from_acc<scalar_t>(state_or_zero<scalar_t>(rows.reset_state[0], rows.R, rows, clock, own.column));
  else if (clock.length == 0)
    h = from_acc<scalar_t>(state_or_zero<scalar_t>(rows.initial[0], rows.R, rows, clock, own.column));
  else
    h = at<scalar_t>(output, (row_of(rows, d == 0 ? clock.length - 1 : 0, own.b) * rows.D + d) * R + own.column);
  at<scalar_t>(last, element(clock.state_row(rows), rows.R, own.column)) = h;
}

template <class scalar_t, class Equations>
__global__ void projected_gradients_kernel(const __grid_constant__ BackwardArgs args, int d, const void* d_previous,
                                           void* d_projected) {
  const RowStates& rows = args.rows;
  const int64_t R = rows.R;
  const Element own(rows.B, R);
  if (!own.exists) return;
  const RowClock clock(rows, d, own.b, 0);
  for (int t = blockIdx.y; t < clock.length; t += gridDim.y) {
    BackwardHidden<scalar_t, Equations> hidden(clock, own.column);
    hidden.prefetch(args, step_of(rows, t));
    const int next = d == 0 ? t + 1 : t - 1;
    if (next < 0 || !clock.runs(next)) {
      hidden.start(args);
      hidden.cut(is_reset_after_end(rows, clock));
    } else if (!is_reset(rows, clock, next)) {
      hidden.leave(next, at<AccOf<scalar_t>>(d_previous, row_of(rows, next, own.b) * R + own.column));
    }
    at<scalar_t>(d_projected, row_of(rows, t, own.b) * R + own.column) = from_acc<scalar_t>(hidden.total());
  }
}

template <class scalar_t, class Equations>
__global__ void entered_gradients_kernel(const __grid_constant__ BackwardArgs args, int d, const void* d_previous) {
  using acc_t = AccOf<scalar_t>;
  const RowStates& rows = args.rows;
  const int64_t R = rows.R;
  const Element own(rows.B, R);
  if (!own.exists) return;
  const RowClock clock(rows, d, own.b, 0);
  BackwardHidden<scalar_t, Equations> hidden(clock, own.column);
  hidden.start(args);
  const auto leave = [&](int t) {
    hidden.leave(t, clock.runs(t) ? at<acc_t>(d_previous, row_of(rows, t, own.b) * R + own.column) : acc_t(0));
  };
  if (rows.reset)
    for (int t = rows.T - 1; t >= 0; --t) {
      leave(t);
      if (is_reset(rows, clock, t)) hidden.store_cut(args, hidden.cut(true));
    }
  else
    leave(first_time(clock));
  hidden.finish(args);
}

}  // namespace

cudaError_t launch_entered_states(const ForwardArgs& args, int d, int64_t width, const void* of_initial,
                                  const void* of_reset, cudaStream_t stream) {
  const LaunchConfig config =
      of_reset ? one_thread_each_step(args.rows, width, 1) : one_thread_each(args.rows.B, width);
  return with_scalar(args.dtype, [&](auto scalar) {
    return launch(entered_states_kernel<AccOf<decltype(scalar)>>, config, stream, args, d, width, of_initial, of_reset);
  });
}

cudaError_t launch_last_states(const RowStates& rows, Dtype dtype, const void* output, void* last,
                               cudaStream_t stream) {
  LaunchConfig config = one_thread_each(rows.B, rows.R);
  config.grid.z = rows.D;
  return with_scalar(dtype, [&](auto scalar) {
    return launch(last_states_kernel<decltype(scalar)>, config, stream, rows, output, last);
  });
}

cudaError_t launch_projected_gradients(const BackwardArgs& args, int d, const void* d_previous, void* d_projected,
                                       cudaStream_t stream) {
  return with_projecting_types(args, [&](auto scalar, auto equations) {
    return launch(projected_gradients_kernel<decltype(scalar), decltype(equations)>,
                  one_thread_each_step(args.rows, args.rows.R, 1), stream, args, d, d_previous, d_projected);
  });
}

cudaError_t launch_entered_gradients(const BackwardArgs& args, int d, const void* d_previous, cudaStream_t stream) {
  return with_projecting_types(args, [&](auto scalar, auto equations) {
    return launch(entered_gradients_kernel<decltype(scalar), decltype(equations)>,
                  one_thread_each(args.rows.B, args.rows.R), stream, args, d, d_previous);
  });
}

}  // namespace fusedlstm::cuda
