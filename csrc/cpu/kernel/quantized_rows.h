// Rows of float32 as bytes: each by itself, when it enters a product.
#pragma once

#include "quantized_product.h"

namespace fusedlstm::cpu {

// What a row's bytes mean: (byte - zero) * scale.
struct RowScale {
  float scale;
  int32_t zero;
};

// The same mathematics on every instruction set, for results that are equal bit by bit: compiled without fused
// multiply-adds, and tanh in its one form that needs none.
template <class Isa>
struct QuantizedKit : Kit<Isa, Full<float>, FullProduct<float>> {
  struct Math : VectorMath<Isa, float> {
    using V = Vector<Isa, float>;
    static FUSEDLSTM_INLINE V accurate_tanh(V x) { return VectorMath<Isa, float>::tanh(x); }
  };
};

// Bytes of a row of so many elements: whole vectors of any set, and whole groups.
constexpr int64_t bytes_of_row(int64_t elements) {
  return round_up(elements, kQuantizedUnits);
}

// The sum of all lanes, or what `f` makes of two vectors in place of adding them.
template <class K, class F>
FUSEDLSTM_INLINE float across_lanes(typename K::V v, F f) {
  using Index = Vector<typename K::Isa, int32_t>;
#pragma GCC unroll 4
  for (int step = K::kLanes / 2; step > 0; step /= 2) {
    Index other{};
#pragma GCC unroll 16
    for (int l = 0; l < K::kLanes; ++l) other[l] = l ^ step;
    v = f(v, __builtin_shuffle(v, other));
  }
  return v[0];
}

// Writes bytes_of_row(n) bytes. The range is that of the row and 0, so that zeros stay zeros; 255 steps of it. A row
// with a NaN or an infinity has a scale of NaN.
template <class K>
FUSEDLSTM_NOINLINE RowScale quantize_row(int8_t* to, const float* from, int64_t n) {
  using V = typename K::V;
  using Math = typename K::Math;
  using Integers = Vector<typename K::Isa, int32_t>;
  using Bytes = typename VectorOf<int8_t, K::kLanes>::type;
  constexpr float kRound = 12582912.0f;     // 1.5 * 2^23: added, and taken off, it rounds to nearest even
  constexpr float kLeastRange = 0x1p-100f;  // 255 divided by it is finite
  V low{}, high{}, lost{};
  for (int64_t k = 0; k < n; k += K::kLanes) {
    const V v = K::load(from + k, n - k);
    low = Math::least(low, v);
    high = Math::greatest(high, v);
    lost += v - v;
  }
  const float lowest = across_lanes<K>(low, Math::least), range = across_lanes<K>(high, Math::greatest) - lowest;
  const bool is_wide = range > kLeastRange;
  const float inverse = is_wide ? 255.0f / range : 0.0f;
  const float zero = (-lowest * inverse + kRound) - kRound;
  const int32_t offset = int32_t(zero) - (K::Isa::kIsUnsigned ? 0 : 128);
  const int32_t bias = offset - __builtin_bit_cast(int32_t, kRound);
  const Integers largest = Integers{} + (255 + offset - int32_t(zero));
  for (int64_t k = 0; k < bytes_of_row(n); k += K::kLanes) {
    const V v = k < n ? K::load(from + k, n - k) : V{};
    const Integers byte = bits<Integers>(v * inverse + kRound) + bias;
    store(to + k, __builtin_convertvector(byte < largest ? byte : largest, Bytes));
  }
  const float scale = is_wide ? range / 255.0f : 0.0f;
  return {scale + across_lanes<K>(lost, [](V a, V b) { return a + b; }), offset};
}

}  // namespace fusedlstm::cpu
