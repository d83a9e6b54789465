#include "launch.h"

#include "kernel_shapes.h"
#include "launch_recurrence.h"

namespace fusedlstm::gpu {

namespace {

int64_t round_up(int64_t bytes) {
  return (bytes + 15) / 16 * 16;
}

}  // namespace

int64_t weight_pitch(Dtype dtype, int64_t H) {
  const int64_t bytes = static_cast<int64_t>(element_bytes(dtype));
  return round_up(H * bytes) / bytes;
}

int64_t exchange_bytes(const Plan& plan, const RowStates& rows) {
  if (plan.shape.transport != Transport::kGrid) return 0;
  const int64_t operands = plan.shape.pass == Pass::kForward ? 1 : 4;
  return rows.D * rows.T * rows.B * operands * round_up(rows.H * product_bytes(plan.arithmetic));
}

cudaError_t launch_forward(const Plan& plan, const ForwardArgs& args, cudaStream_t stream) {
  switch (plan.arithmetic) {
    case Arithmetic::kBFloat16:
      return launch_forward_with<BFloat16Math>(plan, args, stream);
    case Arithmetic::kFloat16:
      return launch_forward_with<Float16Math>(plan, args, stream);
    case Arithmetic::kTf32:
      return launch_forward_with<Tf32Math>(plan, args, stream);
    case Arithmetic::kFloat32:
      return launch_forward_with<Float32Math>(plan, args, stream);
    case Arithmetic::kFloat64:
      break;
  }
  return cudaErrorInvalidConfiguration;
}

cudaError_t launch_backward(const Plan& plan, const BackwardArgs& args, cudaStream_t stream) {
  switch (plan.arithmetic) {
    case Arithmetic::kBFloat16:
      return launch_backward_with<BFloat16Math>(plan, args, stream);
    case Arithmetic::kFloat16:
      return launch_backward_with<Float16Math>(plan, args, stream);
    case Arithmetic::kTf32:
      return launch_backward_with<Tf32Math>(plan, args, stream);
    case Arithmetic::kFloat32:
      return launch_backward_with<Float32Math>(plan, args, stream);
    case Arithmetic::kFloat64:
      break;
  }
  return cudaErrorInvalidConfiguration;
}

}  // namespace fusedlstm::gpu
