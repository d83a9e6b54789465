#include "quantized.h"

#include <limits>
#include <type_traits>

namespace fusedlstm::cpu {
namespace {

constexpr int64_t kUnits = 16, kDepth = 4;  // of a panel, and of a group of k (kernel/quantized_product.h)
constexpr int32_t kMostReduced = 64;        // (kernel/quantized_product.h)
constexpr int64_t kMostElements = 1 << 16;  // of a row: its sum of products of bytes stays below 2^31

// Of a row whose sum fits in 16 bits, whatever its integers are.
constexpr int64_t kMostOfNarrow = std::numeric_limits<int16_t>::max() / 127;

constexpr int64_t parts(int64_t n, int64_t of) {
  return (n + of - 1) / of;
}

// The type of a tensor's elements, as PyTorch codes it (Facts), and its name.
struct Element {
  int32_t code;
  const char* name;
};
template <class T>
Element element() {
  if constexpr (std::is_same_v<T, int8_t>) return {aoti_torch_dtype_int8(), "int8"};
  if constexpr (std::is_same_v<T, int16_t>) return {aoti_torch_dtype_int16(), "int16"};
  if constexpr (std::is_same_v<T, int32_t>) return {aoti_torch_dtype_int32(), "int32"};
  if constexpr (std::is_same_v<T, float>) return {aoti_torch_dtype_float32(), "float32"};
}

// The tensors of a list, one after another.
struct Reader {
  const OwnedTensors& all;
  size_t next = 0;
  const int32_t cpu = aoti_torch_device_type_cpu();

  template <class T>
  const T* take(const Sizes& sizes, const char* name) {
    const TensorRef t = all[next++];
    check_sizes(t, sizes, name);
    const Facts facts = Facts::of(t);
    const Element expected = element<T>();
    STD_TORCH_CHECK(facts.dtype == expected.code && facts.device_type == cpu && t.is_contiguous(),
                    "fusedlstm: expected ", name,
                    " as fusedlstm.quantize makes it, contiguous on the CPU and of dtype ", expected.name, ", got ",
                    name_of_code(facts.dtype), facts.device_type == cpu ? "" : " on another device",
                    t.is_contiguous() ? "" : " that is not contiguous");
    check_memory(t, name);
    return static_cast<const T*>(t.data_ptr());
  }
  const int8_t* panels(int64_t units, int64_t depth, int64_t gates, const char* name) {
    STD_TORCH_CHECK(depth <= kMostElements, "fusedlstm: expected at most ", kMostElements, " columns of ", name,
                    ", got ", depth);
    return take<int8_t>({parts(units, kUnits), gates, parts(depth, kDepth), kUnits, kDepth}, name);
  }
  const float* numbers(int64_t n, const char* name) { return take<float>({n}, name); }
  // Of `n` rows of `depth` elements.
  RowSums sums(int64_t n, int64_t depth, const char* name) {
    if (depth <= kMostOfNarrow) return {take<int16_t>({n + 1}, name), true};
    return {take<int32_t>({n + 1}, name), false};
  }
};

// The largest integer of `n` rows, without its sign.
int32_t largest(const RowSums& sums, int64_t n) {
  return sums.is_narrow ? static_cast<const int16_t*>(sums.data)[n] : static_cast<const int32_t*>(sums.data)[n];
}

constexpr size_t kProducts = 6, kBias = 1, kProjection = 3;  // tensors of one direction

}  // namespace

CheckedQuantized::CheckedQuantized(const OwnedTensors& given, const NamedCell& cell, int64_t features) {
  // 6 to 10 tensors a direction: from 12 on there are two.
  const size_t directions = given.size() < 2 * kProducts ? 1 : 2, of_direction = given.size() / directions;
  const bool projects = of_direction > kProducts + kBias;
  const bool has_bias = of_direction == kProducts + kBias + projects * kProjection;
  STD_TORCH_CHECK(given.size() == directions * (kProducts + has_bias * kBias + projects * kProjection) &&
                      (!projects || cell.sizes.projects),
                  "fusedlstm: expected the quantized weights of a layer of ", cell.name, ", got ", given.size(),
                  " tensors");
  sizes.directions = int64_t(directions);
  const int64_t gates = cell.sizes.gates, rows = TensorRef(given[2]).numel();
  STD_TORCH_CHECK(rows > 0 && rows % gates == 0, "fusedlstm: expected scale_ih of size [", gates,
                  " * hidden_size], got ", sizes_of(given[2]));
  sizes.features = features;
  sizes.hidden = rows / gates;
  sizes.proj = projects ? TensorRef(given[of_direction - 2]).numel() : 0;
  sizes.dtype = ScalarType::Float;
  const int64_t recurrent = projects ? sizes.proj : sizes.hidden;
  Reader reader{given};
  for (QuantizedWeights& w : weights) {
    if (reader.next == given.size()) break;
    w.ih = reader.panels(sizes.hidden, features, gates, "weight_ih");
    w.hh = reader.panels(sizes.hidden, recurrent, gates, "weight_hh");
    w.scale_ih = reader.numbers(rows, "scale_ih");
    w.scale_hh = reader.numbers(rows, "scale_hh");
    w.sum_ih = reader.sums(rows, features, "sum_ih");
    w.sum_hh = reader.sums(rows, recurrent, "sum_hh");
    if (has_bias) w.bias = reader.numbers((gates + cell.sizes.apart()) * sizes.hidden, "bias_gates");
    if (projects) {
      w.hr = reader.panels(sizes.proj, sizes.hidden, 1, "weight_hr");
      w.scale_hr = reader.numbers(sizes.proj, "scale_hr");
      w.sum_hr = reader.sums(sizes.proj, sizes.hidden, "sum_hr");
    }
    is_reduced = is_reduced && largest(w.sum_ih, rows) <= kMostReduced && largest(w.sum_hh, rows) <= kMostReduced &&
                 (!projects || largest(w.sum_hr, sizes.proj) <= kMostReduced);
  }
}

}  // namespace fusedlstm::cpu
