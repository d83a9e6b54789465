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

  // x = (x - mean) * scale, of n elements.
  FUSEDLSTM_NOINLINE static RowNorm apply(acc* x, int64_t n, double eps) {
    V sum{}, squares{};
    for (int64_t i = 0; i < n; i += K::kLanes) sum += load_some<V>(x + i, n - i);
    const acc mean = sum_of_lanes<K>(sum) / acc(n);
    for (int64_t i = 0; i < n; i += K::kLanes) {
      store_some(x + i, load_some<V>(x + i, n - i) - mean, n - i);
      const V from_mean = load_some<V>(x + i, n - i);  // lanes beyond the row are zero, and not -mean
      squares += from_mean * from_mean;
    }
    const acc scale = acc(1 / __builtin_sqrt(double(sum_of_lanes<K>(squares)) / double(n) + eps));
    for (int64_t i = 0; i < n; i += K::kLanes) store_some(x + i, load_some<V>(x + i, n - i) * scale, n - i);
    return {mean, scale};
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
