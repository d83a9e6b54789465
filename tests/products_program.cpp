// Multiplies small whole numbers by csrc/cuda/binding/products.cpp in every dtype and layout, and compares. Prints how
// many products were right, or says which was not and ends with 1.
#include <array>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <vector>

#include "cuda/binding/products.h"

using fusedlstm::Dtype;
using fusedlstm::cuda::View;

extern "C" int stub_mode_of_product();
extern "C" int stub_math_mode();

namespace {

constexpr int kModeOfTorch = 3, kNoSumsIn16Bits = 16;

// A matrix that is a part of a larger one, by rows or by columns, with whole numbers that every dtype has exactly.
struct Matrix {
  std::vector<unsigned char> memory;
  View view;

  Matrix(Dtype dtype, int64_t rows, int64_t columns, bool by_columns, int seed) {
    const int64_t height = by_columns ? columns : rows, width = (by_columns ? rows : columns) + 3;
    memory.resize(static_cast<size_t>(height * width * 8));
    view = View(memory.data(), nullptr, dtype, {height, width});
    view = view.narrow(1, 2, width - 3);
    if (by_columns) view = view.transposed();
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) set(i, j, static_cast<float>((i * 5 + j * 3 + seed) % 5 - 2));
  }

  void* at(int64_t i, int64_t j) const {
    return static_cast<char*>(view.data) + (i * view.strides[0] + j * view.strides[1]) * bytes();
  }
  float get(int64_t i, int64_t j) const {
    if (view.dtype == Dtype::kFloat64) return static_cast<float>(*static_cast<double*>(at(i, j)));
    if (view.dtype == Dtype::kFloat16) return static_cast<float>(*static_cast<_Float16*>(at(i, j)));
    float value = 0;  // float32, and bfloat16, which is its upper half
    std::memcpy(reinterpret_cast<char*>(&value) + 4 - bytes(), at(i, j), static_cast<size_t>(bytes()));
    return value;
  }
  void set(int64_t i, int64_t j, float value) {
    const double wide = value;
    const _Float16 half = static_cast<_Float16>(value);
    if (view.dtype == Dtype::kFloat64)
      std::memcpy(at(i, j), &wide, 8);
    else if (view.dtype == Dtype::kFloat16)
      std::memcpy(at(i, j), &half, 2);
    else
      std::memcpy(at(i, j), reinterpret_cast<char*>(&value) + 4 - bytes(), static_cast<size_t>(bytes()));
  }

 private:
  int64_t bytes() const { return static_cast<int64_t>(element_bytes(view.dtype)); }
};

bool is_right(Dtype of_operands, Dtype of_result, std::array<int64_t, 3> sizes, int layout, bool adds) {
  const auto [m, k, n] = sizes;
  const Matrix a(of_operands, m, k, layout & 1, 1), b(of_operands, k, n, layout & 2, 2);
  Matrix out(of_result, m, n, false, 3);
  const Matrix before = out;
  std::vector<float> expected;
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      float sum = adds ? out.get(i, j) : 0;
      for (int64_t l = 0; l < k; ++l) sum += a.get(i, l) * b.get(l, j);
      expected.push_back(sum);
    }
  if (!fusedlstm::cuda::multiply_by_cublas(out.view, a.view, b.view, adds, layout & 4)) return false;
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j)
      if (out.get(i, j) != expected[static_cast<size_t>(i * n + j)]) return false;
  return stub_mode_of_product() == kNoSumsIn16Bits && stub_math_mode() == kModeOfTorch;
}

}  // namespace

int main() {
  constexpr std::array kTypes{
      std::pair{Dtype::kFloat32, Dtype::kFloat32},   std::pair{Dtype::kFloat64, Dtype::kFloat64},
      std::pair{Dtype::kFloat16, Dtype::kFloat16},   std::pair{Dtype::kFloat16, Dtype::kFloat32},
      std::pair{Dtype::kBFloat16, Dtype::kBFloat16}, std::pair{Dtype::kBFloat16, Dtype::kFloat32}};
  int right = 0;
  for (const auto& [operands, result] : kTypes)
    for (const std::array<int64_t, 3> sizes : {std::array<int64_t, 3>{4, 5, 3}, {1, 5, 3}, {4, 1, 3}, {4, 5, 1}})
      for (int layout = 0; layout < 8; ++layout)
        for (const bool adds : {false, true}) {
          if (!is_right(operands, result, sizes, layout, adds)) {
            std::printf("wrong: %s to %s, %d x %d x %d, layout %d, adds %d\n", dtype_name(operands), dtype_name(result),
                        static_cast<int>(sizes[0]), static_cast<int>(sizes[1]), static_cast<int>(sizes[2]), layout,
                        adds);
            return 1;
          }
          ++right;
        }
  std::printf("%d products\n", right);
  return 0;
}
