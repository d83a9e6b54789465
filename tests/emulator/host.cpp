#include "host.h"

#include <cstdlib>
#include <cstring>
#include <new>

#include "cuda/device/primitives.cuh"
#include "streams.h"

namespace emulator {

using fusedlstm::AccOf;
using fusedlstm::Dtype;
using fusedlstm::Sizes;
using fusedlstm::with_scalar;
using fusedlstm::cuda::View;

namespace {

constexpr int64_t kMargin = 4096;  // bytes on either side of an allocation that belong to nobody

// Calls f with the offset, in elements, of each element of a and of the one at the same place in b.
template <class F>
void for_each_element(const View& a, const View& b, F f) {
  const auto walk = [&](auto self, int dimension, int64_t in_a, int64_t in_b) -> void {
    if (dimension == a.dimensions) return f(in_a, in_b);
    for (int64_t i = 0; i < a.sizes[dimension]; ++i)
      self(self, dimension + 1, in_a + i * a.strides[dimension], in_b + i * b.strides[dimension]);
  };
  walk(walk, 0, 0, 0);
}

// Checks that the host may read or write all elements of a view.
void check_view(const View& view, HostAccess access) {
  const auto bytes = static_cast<int64_t>(element_bytes(view.dtype));
  for_each_element(view, view, [&](int64_t i, int64_t) {
    check_host_access(static_cast<char*>(view.data) + i * bytes, static_cast<size_t>(bytes), access);
  });
}

void expect(bool condition, const char* what) {
  if (!condition) throw Error(std::string("host code: expected ") + what);
}

bool is_matrix(const View& view, int64_t rows, int64_t columns) {
  return view.dimensions == 2 && view.sizes[0] == rows && view.sizes[1] == columns;
}

template <class scalar_t>
AccOf<scalar_t> load(const View& view, int64_t offset) {
  return fusedlstm::cuda::to_acc(static_cast<const scalar_t*>(view.data)[offset]);
}

// Of a product.
template <class scalar_t>
AccOf<scalar_t> operand(const View& view, int64_t offset, bool allow_tf32) {
  const AccOf<scalar_t> value = load<scalar_t>(view, offset);
  if constexpr (std::is_same_v<scalar_t, float>)
    if (allow_tf32) return fusedlstm::cuda::bits_float(fusedlstm::cuda::round_to_tf32(value));
  return value;
}

template <class scalar_t>
void store(const View& view, int64_t offset, double value) {
  static_cast<scalar_t*>(view.data)[offset] = fusedlstm::cuda::from_acc<scalar_t>(static_cast<AccOf<scalar_t>>(value));
}

void multiply_now(const View& out, const View& a, const View& b, bool adds, bool allow_tf32) {
  const int64_t m = a.sizes[0], k = a.sizes[1], n = b.sizes[1];
  for (const View* operand : {&a, &b}) check_view(*operand, HostAccess::kRead);
  if (adds) check_view(out, HostAccess::kRead);
  check_view(out, HostAccess::kWrite);
  with_scalar(out.dtype, [&]<class out_t>(out_t) {
    with_scalar(a.dtype, [&]<class in_t>(in_t) {
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < n; ++j) {
          AccOf<in_t> sum = 0;
          for (int64_t l = 0; l < k; ++l)
            sum += operand<in_t>(a, i * a.strides[0] + l * a.strides[1], allow_tf32) *
                   operand<in_t>(b, l * b.strides[0] + j * b.strides[1], allow_tf32);
          const int64_t at = i * out.strides[0] + j * out.strides[1];
          store<out_t>(out, at, adds ? load<out_t>(out, at) + static_cast<AccOf<out_t>>(sum) : sum);
        }
    });
  });
}

void sum_rows_now(const View& out, const View& matrix) {
  const int64_t rows = matrix.sizes[0], columns = matrix.sizes[1];
  check_view(matrix, HostAccess::kRead);
  check_view(out, HostAccess::kWrite);
  with_scalar(out.dtype, [&]<class scalar_t>(scalar_t) {
    for (int64_t j = 0; j < columns; ++j) {
      AccOf<scalar_t> sum = 0;
      for (int64_t i = 0; i < rows; ++i) sum += load<scalar_t>(matrix, i * matrix.strides[0] + j * matrix.strides[1]);
      store<scalar_t>(out, j * out.strides[0], sum);
    }
  });
}

}  // namespace

View EmulatedHost::allocate(const char* name, Dtype dtype, const Sizes& sizes) {
  View view(nullptr, nullptr, dtype, sizes);
  const int64_t bytes = view.bytes(), all = (bytes + 2 * kMargin + 63) / 64 * 64;
  auto* memory = static_cast<char*>(std::aligned_alloc(64, static_cast<size_t>(all)));
  if (!memory) throw std::bad_alloc();
  std::memset(memory, 0xFF, static_cast<size_t>(all));  // NaN in every dtype
  view.owner = memory;
  view.data = bytes > 0 ? memory + kMargin : nullptr;
  register_buffer(view.data, static_cast<size_t>(bytes), name, false);
  ++live;
  return view;
}

void EmulatedHost::release(const View& allocated) noexcept {
  --live;
  enqueue(stream, {.run =
                       [=] {
                         unregister_buffer(allocated.data);
                         std::free(allocated.owner);
                       },
                   .frees = true});
}

void EmulatedHost::copy(const View& to, const View& from) {
  bool fits = to.dimensions == from.dimensions;
  for (int i = 0; fits && i < to.dimensions; ++i) fits = to.sizes[i] == from.sizes[i];
  expect(fits, "a copy between equal sizes");
  enqueue(stream, {[=] {
            check_view(from, HostAccess::kRead);
            check_view(to, HostAccess::kWrite);
            with_scalar(to.dtype, [&]<class to_t>(to_t) {
              with_scalar(from.dtype, [&]<class from_t>(from_t) {
                for_each_element(to, from, [&](int64_t i, int64_t j) {
                  if constexpr (std::is_same_v<to_t, from_t>)
                    static_cast<to_t*>(to.data)[i] = static_cast<from_t*>(from.data)[j];  // any bits
                  else
                    store<to_t>(to, i, load<from_t>(from, j));
                });
              });
            });
          }});
}

void EmulatedHost::multiply(const View& out, const View& a, const View& b, bool adds, bool allow_tf32) {
  const int64_t m = a.sizes[0], k = a.sizes[1], n = b.sizes[1];
  expect(is_matrix(a, m, k) && is_matrix(b, k, n) && is_matrix(out, m, n), "matrices that can be multiplied");
  const bool is_wider = out.dtype == Dtype::kFloat32 && element_bytes(a.dtype) == 2;
  expect(a.dtype == b.dtype && (out.dtype == a.dtype || (is_wider && !adds)), "a product of the operands' dtype");
  products_with_tf32.push_back(allow_tf32);
  enqueue(stream, {[=] { multiply_now(out, a, b, adds, allow_tf32); }});
}

void EmulatedHost::sum_rows(const View& out, const View& matrix) {
  const int64_t rows = matrix.sizes[0], columns = matrix.sizes[1];
  expect(is_matrix(matrix, rows, columns) && out.dimensions == 1 && out.sizes[0] == columns, "the sums of the rows");
  enqueue(stream, {[=] { sum_rows_now(out, matrix); }});
}

}  // namespace emulator
