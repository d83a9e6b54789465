// How a row-major matrix is named to BLAS, which counts columns first.
//
// Plain C++. The transpose of a row-major product is a column-major one of the transposed operands in reverse
// order: out = a b is BLAS's out' = b' a'. So both operands and the result are passed as the transposes that lie in
// memory already.
#pragma once
#include <algorithm>
#include <cstdint>
#include <optional>

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

}  // namespace fusedlstm::cuda
