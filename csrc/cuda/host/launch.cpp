#include "launch.h"

#include "kernel_shapes.h"
#include "launch_recurrence.h"

namespace fusedlstm::cuda {

namespace {

int64_t round_up(int64_t bytes) {
  return (bytes + 15) / 16 * 16;
}

// Calls f for the arithmetic's type.
template <class F>
cudaError_t with_math(Arithmetic arithmetic, F f) {
  switch (arithmetic) {
    case Arithmetic::kBFloat16:
      return f.template operator()<BFloat16Math>();
    case Arithmetic::kFloat16:
      return f.template operator()<Float16Math>();
    case Arithmetic::kTf32:
      return f.template operator()<Tf32Math>();
    case Arithmetic::kFloat32:
      return f.template operator()<Float32Math>();
    case Arithmetic::kFloat64:
      break;
  }
  return cudaErrorInvalidConfiguration;
}

}  // namespace

int64_t weight_pitch(Dtype dtype, int64_t H) {
  const int64_t bytes = static_cast<int64_t>(element_bytes(dtype));
  return round_up(H * bytes) / bytes;
}

int64_t exchange_bytes(const Plan& plan, const RowStates& rows) {
  if (plan.shape.transport != Transport::kGrid) return 0;
  const int64_t operands = plan.shape.pass == Pass::kForward ? 1 : 4;
  return operands * rows.M * rows.D * rows.T * rows.B * round_up(rows.H * product_bytes(plan.arithmetic));
}

cudaError_t launch_forward(const Plan& plan, const ForwardArgs& args, cudaStream_t stream) {
  return with_math(plan.arithmetic, [&]<class Math>() { return launch_forward_with<Math>(plan, args, stream); });
}

cudaError_t launch_backward(const Plan& plan, const BackwardArgs& args, cudaStream_t stream) {
  return with_math(plan.arithmetic, [&]<class Math>() { return launch_backward_with<Math>(plan, args, stream); });
}

}  // namespace fusedlstm::cuda
