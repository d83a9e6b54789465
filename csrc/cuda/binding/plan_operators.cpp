// What Python asks and tells the planner of a CUDA device: operators without tensors.
//
// Defined here and not with the other schemas, since they exist only where this library is loaded.
#include <cstdio>
#include <exception>

#include "cuda/host/named_problem.h"
#include "device_query.h"
#include "on_device.h"
#include "operators.h"

namespace fusedlstm::cuda {
namespace {

// Why no kernel of this library can run on a device, or "".
std::string obstacle(int64_t ordinal) {
  return on_device(static_cast<int>(ordinal), [&] {
    Device device{};
    const cudaError_t error = query_device(static_cast<int>(ordinal), device);
    return error == cudaSuccess ? std::string() : failure_text("device " + std::to_string(ordinal), error);
  });
}

std::string contenders(int64_t ordinal, std::string cell, int64_t T, int64_t B, int64_t I, int64_t H, int64_t proj_size,
                       int64_t directions, int64_t layers, std::string dtype, bool allow_tf32, bool packed,
                       bool backward) {
  return on_device(static_cast<int>(ordinal), [&] {
    const Problem problem = named_problem(T, B, H, cell, dtype, proj_size, directions, 1, allow_tf32, backward);
    return fallback_of(static_cast<int>(ordinal)).contenders(problem, {I, static_cast<int>(layers), packed});
  });
}

void prefer(int64_t ordinal, std::string cell, int64_t T, int64_t B, int64_t H, int64_t proj_size, int64_t directions,
            std::string dtype, bool allow_tf32, bool backward, std::string request) {
  on_device(static_cast<int>(ordinal), [&] {
    const Problem problem = named_problem(T, B, H, cell, dtype, proj_size, directions, 1, allow_tf32, backward);
    fallback_of(static_cast<int>(ordinal)).prefer(problem, request);
  });
}

std::string last_plan(int64_t ordinal, bool backward) {
  return on_device(static_cast<int>(ordinal), [&] {
    return fallback_of(static_cast<int>(ordinal)).last_plan(backward ? Pass::kBackward : Pass::kForward);
  });
}

}  // namespace

// For the `catch` see csrc/library.cpp.
void define_planner(torch::stable::detail::StableLibrary& m) {
  try {
    m.def("_cuda_obstacle(int ordinal) -> str");
    m.def(
        "_cuda_contenders(int ordinal, str cell, int T, int B, int I, int H, int proj_size, int directions, "
        "int layers, str dtype, bool allow_tf32, bool packed, bool backward) -> str");
    m.def(
        "_cuda_prefer(int ordinal, str cell, int T, int B, int H, int proj_size, int directions, str dtype, "
        "bool allow_tf32, bool backward, str request) -> ()");
    m.def("_cuda_last_plan(int ordinal, bool backward) -> str");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "fusedlstm: its CUDA operators could not be defined (%s)\n", error.what());
  }
}

void implement_planner(torch::stable::detail::StableLibrary& m) {
  m.impl("_cuda_obstacle", TORCH_BOX(&obstacle));
  m.impl("_cuda_contenders", TORCH_BOX(&contenders));
  m.impl("_cuda_prefer", TORCH_BOX(&prefer));
  m.impl("_cuda_last_plan", TORCH_BOX(&last_plan));
}

}  // namespace fusedlstm::cuda
