// A product of row-major matrices as cublasGemmEx takes it, which counts columns first.
//
// Plain C++. The transpose of a row-major product is a column-major one of the transposed operands in reverse
// order: out = a b is BLAS's out' = b' a'. So both operands and the result are passed as the transposes that lie in
// memory already.
#pragma once
#include <algorithm>
#include <cstdint>
#include <optional>

#include "view.h"

namespace fusedlstm::cuda {

struct GemmOperand {
  bool is_transposed;         // BLAS shall transpose what it reads column by column
  int64_t leading_dimension;  // elements from one of those columns to the next
};

// The transpose of a [rows, columns] matrix with these strides; nothing if it does not lie in memory as BLAS can read
// it.
constexpr std::optional<GemmOperand> gemm_operand(int64_t rows, int64_t columns, int64_t stride_row,
                                                  int64_t stride_column) {
  // Along a dimension of size 1 any stride is right, and BLAS still wants one that is not too small.
  if (rows == 1) stride_row = std::max(stride_row, columns);
  if (columns == 1) stride_column = std::max(stride_column, rows);
  if ((columns == 1 || stride_column == 1) && stride_row >= columns) return GemmOperand{false, stride_row};
  if ((rows == 1 || stride_row == 1) && stride_column >= rows) return GemmOperand{true, stride_column};
  return std::nullopt;
}

// The numbers that the library's headers give to its types.
enum class GemmType : int { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBFloat16 = 14 };  // cudaDataType
enum class GemmCompute : int { kFloat32 = 68, kFloat64 = 70, kFloat32ByTf32 = 77 };      // cublasComputeType_t

// What cublasGemmEx is told beside addresses: of its first operand, which is b, its second, a, and the result.
struct Gemm {
  bool transposes_first, transposes_second;
  int m, n, k, ld_first, ld_second, ld_result;
  GemmType operands, result;
  GemmCompute compute;
};

// out = a b of matrices, summed in float32 or better. The dtype of `out` is that of a and b, or float32 where they have
// 16 bits. allow_tf32: for float32. Nothing where a matrix has no elements, or BLAS cannot be told of it.
std::optional<Gemm> gemm_of(const View& out, const View& a, const View& b, bool allow_tf32);

}  // namespace fusedlstm::cuda
