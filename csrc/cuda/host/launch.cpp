#include "launch.h"

#include "kernel_shapes.h"
#include "launch_recurrence.h"

namespace fusedlstm::cuda {

namespace {

int64_t round_up(int64_t bytes) {
  return (bytes + 15) / 16 * 16;
}

const Launchers& launchers_of(Arithmetic arithmetic) {
  switch (arithmetic) {
    case Arithmetic::kBFloat16:
      return kBFloat16Launchers;
    case Arithmetic::kFloat16:
      return kFloat16Launchers;
    case Arithmetic::kTf32:
      return kTf32Launchers;
    case Arithmetic::kFloat32:
      return kFloat32Launchers;
    case Arithmetic::kFloat64:
      break;
  }
  static constexpr Launchers kNone{};
  return kNone;
}

template <class Args>
cudaError_t launch_resident(const ShapeLaunchers<Args>& launchers, const Plan& plan, const Args& args,
                            cudaStream_t stream) {
  const auto launch = plan.shape_index < 0 ? nullptr : launchers[static_cast<size_t>(plan.shape_index)];
  return launch ? launch(plan, args, stream) : cudaErrorInvalidConfiguration;
}

}  // namespace

int64_t weight_pitch(Dtype dtype, int64_t H) {
  const int64_t bytes = static_cast<int64_t>(element_bytes(dtype));
  return round_up(H * bytes) / bytes;
}

int64_t exchange_bytes(const Plan& plan, const RowStates& rows) {
  if (!is_cooperative(plan.shape.transport)) return 0;
  return int64_t{plan.shape.operands()} * rows.M * rows.D * exchanged_positions(rows.steps()) * rows.B *
         round_up(rows.H * product_bytes(plan.arithmetic));
}

cudaError_t launch_forward(const Plan& plan, const ForwardArgs& args, cudaStream_t stream) {
  return launch_resident(launchers_of(plan.arithmetic).forward, plan, args, stream);
}

cudaError_t launch_backward(const Plan& plan, const BackwardArgs& args, cudaStream_t stream) {
  return launch_resident(launchers_of(plan.arithmetic).backward, plan, args, stream);
}

}  // namespace fusedlstm::cuda
