#include "lost_context.h"

namespace fusedlstm::cuda {
namespace {

// Where a kernel has given up waiting for its peers, or hung until somebody gave up on it.
bool may_be_a_wait(cudaError_t state) {
  return state == cudaErrorAssert || state == cudaErrorLaunchFailure || state == cudaErrorLaunchTimeout;
}

}  // namespace

bool is_context_lost(cudaError_t error) {
  switch (error) {
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorMpsClientTerminated:
      return true;
    default:
      return false;
  }
}

std::string lost_context_text(const std::string& error, cudaError_t state, const LastLaunched& last) {
  std::string text = "fusedlstm: the CUDA context of this process is lost (" + std::string(cudaGetErrorString(state)) +
                     "): no CUDA call can succeed any more; restart the process.";
  if (!last.varied.empty())
    text += " The kernel of fusedlstm that was launched last on this device: " + last.varied + ".";
  text += last.resident.empty()
              ? " No resident kernel of fusedlstm was launched on this device."
              : " The resident kernel of fusedlstm that was launched last on this device: " + last.resident + ".";
  if (may_be_a_wait(state) && !last.resident.empty())
    text +=
        " If it waited in vain for its other blocks, a line on stderr says so; FUSEDLSTM_PLAN=stream runs layers "
        "without kernels that wait.";
  return text + " The operator said: " + error;
}

}  // namespace fusedlstm::cuda
