// Layer norm of a row, without its gain and bias, and the way back through it.
#pragma once

#include "cells/varied.h"
#include "pack.h"

namespace fusedlstm::cpu {

template <class K>
FUSEDLSTM_INLINE typename K::acc sum_of_lanes(typename K::V v) {
  typename K::acc sum = 0;
  for (int l = 0; l < K::kLanes; ++l) sum += v[l];
  return sum;
}

template <class K>
struct RowNorm {
  using V = typename K::V;
  using acc = typename K::acc;

  acc mean, scale;

  // x = (x - mean) * scale, of n elements; the same into `kept`, if it is not null.
  FUSEDLSTM_NOINLINE static RowNorm apply(acc* x, int64_t n, double eps, acc* kept = nullptr) {
    const acc mean =
        sum_over(
            n, [&](int64_t i) FUSEDLSTM_LAMBDA { return load<V>(x + i); }, [&](int64_t i) { return x[i]; }) /
        acc(n);
    const acc squares = sum_over(
        n,
        [&](int64_t i) FUSEDLSTM_LAMBDA {
          const V from_mean = load<V>(x + i) - mean;
          return from_mean * from_mean;
        },
        [&](int64_t i) { return (x[i] - mean) * (x[i] - mean); });
    const acc scale = acc(1 / __builtin_sqrt(double(squares) / double(n) + eps));
    for (int64_t i = 0; i < n; i += K::kLanes) {
      const V normed = (load_some<V>(x + i, n - i) - mean) * scale;
      store_some(x + i, normed, n - i);
      if (kept) store_some(kept + i, normed, n - i);
    }
    return {mean, scale};
  }

 private:
  // The sum of n elements, which are of_vector(i) from i on, or of_element(i). Four sums run beside each other: one
  // alone would wait for itself.
  template <class OfVector, class OfElement>
  static FUSEDLSTM_INLINE acc sum_over(int64_t n, OfVector of_vector, OfElement of_element) {
    constexpr int kAtOnce = 4;
    V parts[kAtOnce] = {};
    int64_t i = 0;
    for (; i + kAtOnce * K::kLanes <= n; i += kAtOnce * K::kLanes)
      for (int k = 0; k < kAtOnce; ++k) parts[k] += of_vector(i + k * K::kLanes);
    for (; i + K::kLanes <= n; i += K::kLanes) parts[0] += of_vector(i);
    acc sum = sum_of_lanes<K>((parts[0] + parts[1]) + (parts[2] + parts[3]));
    for (; i < n; ++i) sum += of_element(i);
    return sum;
  }
};

// What the way back needs of a row: sums of d, the gradient of its normalised values, and of d times these.
template <class K>
struct NormGradient {
  using V = typename K::V;
  using acc = typename K::acc;

  V d{}, d_times_normed{};

  FUSEDLSTM_INLINE void add(V d_of, V normed) {
    d += d_of;
    d_times_normed += d_of * normed;
  }
  FUSEDLSTM_INLINE NormMeans<acc> means(int64_t n, acc scale) const {
    return {sum_of_lanes<K>(d) / acc(n), sum_of_lanes<K>(d_times_normed) / acc(n), scale};
  }
};

}  // namespace fusedlstm::cpu
