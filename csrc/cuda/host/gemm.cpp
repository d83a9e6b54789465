#include "gemm.h"

#include <limits>

namespace fusedlstm::cuda {
namespace {

GemmType type_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat64:
      return GemmType::kFloat64;
    case Dtype::kFloat16:
      return GemmType::kFloat16;
    case Dtype::kBFloat16:
      return GemmType::kBFloat16;
    case Dtype::kFloat32:
      break;
  }
  return GemmType::kFloat32;
}

GemmCompute compute_of(Dtype dtype, bool allow_tf32) {
  if (dtype == Dtype::kFloat64) return GemmCompute::kFloat64;
  return dtype == Dtype::kFloat32 && allow_tf32 ? GemmCompute::kFloat32ByTf32 : GemmCompute::kFloat32;
}

std::optional<GemmOperand> operand_of(const View& matrix) {
  return gemm_operand(matrix.sizes[0], matrix.sizes[1], matrix.strides[0], matrix.strides[1]);
}

}  // namespace

std::optional<Gemm> gemm_of(const View& out, const View& a, const View& b, bool allow_tf32) {
  const int64_t rows = a.sizes[0], inner = a.sizes[1], columns = b.sizes[1];
  const auto first = operand_of(b), second = operand_of(a), result = operand_of(out);
  if (rows * inner * columns == 0 || !first || !second || !result || result->is_transposed) return std::nullopt;
  for (const int64_t size :
       {rows, inner, columns, first->leading_dimension, second->leading_dimension, result->leading_dimension})
    if (size > std::numeric_limits<int>::max()) return std::nullopt;
  const auto narrow = [](int64_t size) { return static_cast<int>(size); };
  return Gemm{.transposes_first = first->is_transposed,
              .transposes_second = second->is_transposed,
              .m = narrow(columns),
              .n = narrow(rows),
              .k = narrow(inner),
              .ld_first = narrow(first->leading_dimension),
              .ld_second = narrow(second->leading_dimension),
              .ld_result = narrow(result->leading_dimension),
              .operands = type_of(a.dtype),
              .result = type_of(out.dtype),
              .compute = compute_of(a.dtype, allow_tf32)};
}

}  // namespace fusedlstm::cuda
