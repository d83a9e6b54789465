// The forward recurrence of one layer with int8 weights: inference, float32 outside of products.
//
// Every row that enters a product is quantized by itself: those of the input for a chunk at once, h and a cell's output
// before the projection at each step, by every thread for itself, since that is little beside the product.
#pragma once

#include "quantized_rows.h"
#include "quantized_tiles.h"
#include "recurrence.h"

namespace fusedlstm::cpu {

// How the gates of a block of units lie in its sums: gate by gate.
template <class K, CellSizes kSizes>
struct QuantizedPanel {
  static constexpr int kGates = kSizes.gates;
  static constexpr int kUnits = kQuantizedUnits;
  static constexpr int kUnitVectors = kUnits / K::kLanes;  // of each gate
  static constexpr int kWidth = kGates * kUnits;
  static constexpr int fold_of(int64_t) { return 1; }
};

template <class K, class Cell>
class QuantizedForward : Recurrence<QuantizedForward<K, Cell>, K, Cell, QuantizedPanel<K, Cell::kSizes>> {
  using Panel = QuantizedPanel<K, Cell::kSizes>;
  using Base = Recurrence<QuantizedForward, K, Cell, Panel>;
  friend Base;
  using Base::projects, Base::project_panels;
  using Base::shape, Base::plan, Base::index, Base::blocks, Base::chunk_rows, Base::states, Base::pre;

 public:
  QuantizedForward(const QuantizedArgs& args, const Cell& cell, const Plan& plan)
      : Base(args, cell, plan, blocks_of(args.shape.hidden), blocks_of(args.shape.proj),
             blocks_of(args.shape.hidden) * kQuantizedUnits, blocks_of(args.shape.recurrent()) * kQuantizedUnits),
        quantized(args.quantized) {}

  int64_t workspace_bytes() {
    Arena arena{nullptr};
    lay_out(arena, 0);
    return arena.used;
  }

  void run(Share& share, char* memory) {
    Arena arena{memory};
    lay_out(arena, share.first);
    Base::run_steps(share);
  }

 private:
  using V = typename K::V;
  using Isa = typename K::Isa;
  using Integers = typename Isa::Sums;
  using Products = ByteProducts<Isa>;
  static constexpr CellSizes kSizes = Cell::kSizes;
  static constexpr int kRowsAtOnce = 40;  // multiplied before their cells: sums and panels stay in the inner caches

  // Rows as bytes, and what these mean.
  struct Rows {
    int8_t* bytes;
    RowScale* scales;
    int64_t width;

    void lay_out(Arena& arena, int64_t rows, int64_t elements, int64_t share, int64_t shares) {
      width = bytes_of_row(elements);
      bytes = arena.take<int8_t>(shares * rows * width) + share * rows * width;
      scales = arena.take<RowScale>(shares * rows) + share * rows;
    }
    void quantize(int64_t row, const float* from, int64_t elements) {
      scales[row] = quantize_row<K>(bytes + row * width, from, elements);
    }
  };

  // One weight as products read it.
  struct Weight {
    const int8_t* panels;
    const float* scale;
    RowSums sum;
    int64_t units, groups;  // units: of a gate; groups of k
  };

  const QuantizedWeights* quantized;  // of each direction
  Products products;
  // Of this share: [D][chunk rows], [D][rows of a group] of the present step.
  Rows input, hidden, cell_output;

  static constexpr int64_t blocks_of(int64_t units) { return round_up(units, kQuantizedUnits) / kQuantizedUnits; }
  static constexpr int64_t groups_of(int64_t elements) { return round_up(elements, kByteDepth) / kByteDepth; }

  void lay_out(Arena& arena, int64_t share) {
    Base::lay_out(arena, share);
    const int64_t rows = shape.directions * rows_of_group(plan, shape);
    input.lay_out(arena, shape.directions * chunk_rows, shape.input, share, plan.threads);
    hidden.lay_out(arena, rows, shape.recurrent(), share, plan.threads);
    cell_output.lay_out(arena, projects() ? rows : 0, shape.hidden, share, plan.threads);
  }

  Weight weight_ih(int64_t d) const {
    const auto& w = quantized[d];
    return {w.ih, w.scale_ih, w.sum_ih, shape.hidden, groups_of(shape.input)};
  }
  Weight weight_hh(int64_t d) const {
    const auto& w = quantized[d];
    return {w.hh, w.scale_hh, w.sum_hh, shape.hidden, groups_of(shape.recurrent())};
  }
  Weight weight_hr(int64_t d) const {
    const auto& w = quantized[d];
    return {w.hr, w.scale_hr, w.sum_hr, shape.proj, groups_of(shape.hidden)};
  }

  // What makes numbers of the sums of one gate of a block, where the weight's sums of rows are of type Sum.
  template <class Sum>
  struct Terms {
    static constexpr int kVectors = kQuantizedUnits / K::kLanes;
    Integers sum[kVectors];
    V scale[kVectors], bias[kVectors];

    // row_sums: those of the weight; biases: of every gate, or null.
    FUSEDLSTM_INLINE Terms(const Weight& weight, const Sum* row_sums, int gate, int64_t block, const float* biases) {
      using Sums = typename VectorOf<std::make_unsigned_t<Sum>, K::kLanes* int(sizeof(Sum))>::type;
      const bool is_whole = (block + 1) * kQuantizedUnits <= weight.units;
      for (int v = 0; v < kVectors; ++v) {
        const int64_t u = block * kQuantizedUnits + v * K::kLanes;
        const auto of = [&](auto zeros, const auto* array) FUSEDLSTM_LAMBDA {
          using Lanes = decltype(zeros);
          return is_whole ? load<Lanes>(array + gate * weight.units + u)
                          : of_units<Lanes>(array, weight.units, gate, u);
        };
        sum[v] = __builtin_convertvector(of(Sums{}, row_sums), Integers);
        scale[v] = of(V{}, weight.scale);
        bias[v] = biases ? of(V{}, biases) : V{};
      }
    }

    template <bool kHasBias>
    FUSEDLSTM_INLINE void write(float* to, const int32_t* sums, RowScale row) const {
      for (int v = 0; v < kVectors; ++v) {
        const Integers of_zero = sizeof(Sum) == 2 ? low_product(sum[v], row.zero) : sum[v] * row.zero;
        const Integers exact = load<Integers>(sums + v * K::kLanes) - of_zero;
        const V product = __builtin_convertvector(exact, V) * (scale[v] * row.scale);
        store(to + v * K::kLanes, kHasBias ? product + bias[v] : product);
      }
    }
  };

  // Elements unit .. of one gate, of an array of `units` for each; zeros beyond, and where there is no array.
  template <class Lanes, class T>
  static FUSEDLSTM_INLINE Lanes of_units(const T* array, int64_t units, int gate, int64_t unit) {
    return array && unit < units ? load_some<Lanes>(array + gate * units + unit, units - unit) : Lanes{};
  }

  // to[r][gate][unit] of one block, for `count` rows from `first` on: its products as numbers. kHasBias: plus those of
  // `biases`, as Terms has them.
  template <int kGates, bool kHasBias = false>
  FUSEDLSTM_INLINE void multiply(float* to, const Rows& rows, int64_t first, int64_t count, const Weight& weight,
                                 int64_t block, const float* biases = nullptr) {
    weight.sum.is_narrow ? multiply_with<kGates, kHasBias, int16_t>(to, rows, first, count, weight, block, biases)
                         : multiply_with<kGates, kHasBias, int32_t>(to, rows, first, count, weight, block, biases);
  }

  // The same where the weight's sums of rows are of type Sum: to ask for that in Terms takes longer than a step allows.
  template <int kGates, bool kHasBias, class Sum>
  FUSEDLSTM_NOINLINE void multiply_with(float* to, const Rows& rows, int64_t first, int64_t count, const Weight& weight,
                                        int64_t block, const float* biases) {
    const auto* row_sums = static_cast<const Sum*>(weight.sum.data);
    constexpr int kPanels = kGates < Products::kMaxPanels ? kGates : Products::kMaxPanels;
    constexpr int kWidth = kGates * kQuantizedUnits;
    static_assert(kGates % kPanels == 0);
    for (int gate = 0; gate < kGates; gate += kPanels) {
      const int8_t* panels = weight.panels + (block * kGates + gate) * weight.groups * kQuantizedUnits * kByteDepth;
      for_each_tile<Products::kMaxRows>(count, [&](int64_t r0, int tile_rows) FUSEDLSTM_LAMBDA {
        alignas(64) int32_t sums[Products::kMaxPanels][Products::kMaxRows][kQuantizedUnits];
        const int64_t row = first + r0;
        products.template multiply<kPanels>(
            {sums[0], Products::kMaxRows, rows.bytes + row * rows.width, rows.width, panels, weight.groups}, tile_rows);
        for (int p = 0; p < kPanels; ++p) {
          const Terms<Sum> terms(weight, row_sums, gate + p, block, kHasBias ? biases : nullptr);
          for (int r = 0; r < tile_rows; ++r)
            terms.template write<kHasBias>(to + (r0 + r) * kWidth + (gate + p) * kQuantizedUnits, sums[p][r],
                                           rows.scales[row + r]);
        }
      });
    }
  }

  // pre[block][row] = bias + W_ih x for the rows of steps s0 .. s1 - 1.
  void input_part(int64_t d, Range range, int64_t range_begin, Range rows, int64_t s0, int64_t s1,
                  const int64_t* first_row) {
    const int64_t first = d * chunk_rows;
    for (int64_t s = s0, q = 0; s < s1; ++s)
      for (; q < first_row[s - s0 + 1]; ++q)
        input.quantize(first + q, Base::input_row(d, s, rows.begin + q - first_row[s - s0]), shape.input);
    for (int64_t i = range.begin; i < range.end; ++i)
      multiply<kSizes.gates, true>(pre + (i - range_begin) * chunk_rows * Panel::kWidth, input, first,
                                   first_row[s1 - s0], weight_ih(d), i % blocks, quantized[d].bias);
  }

  void begin_step(Range range, Range rows, int64_t s) {
    for_each_row(range, blocks, rows, s, [&](int64_t d, int64_t b, int64_t row) {
      hidden.quantize(row, states.h_row(d, s, b), shape.recurrent());
    });
  }

  void block_step(int64_t i, int64_t, int64_t own_block, Range rows, const Step& step, int64_t first_row,
                  int64_t end_row) {
    const int64_t block = i % blocks, unit = block * kQuantizedUnits, count = end_row - first_row;
    alignas(64) float bias_hidden[at_least_one(kSizes.apart()) * kQuantizedUnits];
    for (int k = 0; k < kSizes.apart(); ++k)
      for (int u = 0; u < kQuantizedUnits; u += K::kLanes)
        store(bias_hidden + k * kQuantizedUnits + u,
              of_units<V>(quantized[step.d].bias, shape.hidden, kSizes.gates + k, unit + u));
    for_each_tile<kRowsAtOnce>(count, [&](int64_t r0, int n) {
      alignas(64) float sums[kRowsAtOnce * Panel::kWidth];
      multiply<kSizes.gates>(sums, hidden, row_of(step.d, r0), n, weight_hh(step.d), block);
      states.finish_rows(sums, pre + (own_block * chunk_rows + first_row + r0) * Panel::kWidth, bias_hidden, n, step,
                         rows.begin + r0, unit);
    });
    for (int u = 0; !projects() && u < kQuantizedUnits; u += K::kLanes)
      states.hold({rows.begin + count, rows.end}, step, unit + u);
  }

  void begin_projection(Range panels, Range rows, int64_t s) {
    for_each_row(panels, project_panels, rows, s, [&](int64_t d, int64_t b, int64_t row) {
      cell_output.quantize(row, states.m_row(d, b), shape.hidden);
    });
  }

  void project(int64_t i, Range rows, const Step& step) {
    const int64_t block = i % project_panels, unit = block * kQuantizedUnits, count = index.rows_at(step.t, rows);
    for_each_tile<kRowsAtOnce>(count, [&](int64_t r0, int n) {
      alignas(64) float sums[kRowsAtOnce * kQuantizedUnits];
      multiply<1>(sums, cell_output, row_of(step.d, r0), n, weight_hr(step.d), block);
      for (int r = 0; r < n; ++r)
        for (int u = 0; u < kQuantizedUnits; u += K::kLanes)
          states.write_projected(load<V>(sums + r * kQuantizedUnits + u), step, rows.begin + r0 + r, unit + u);
    });
    for (int u = 0; u < kQuantizedUnits; u += K::kLanes) states.hold({rows.begin + count, rows.end}, step, unit + u);
  }

  // Where row r of a step's rows is among those of this share.
  int64_t row_of(int64_t d, int64_t r) const { return d * rows_of_group(plan, shape) + r; }

  // Runs body(direction, batch row, its place) for the rows of a step that the blocks `range` of `n` in each direction
  // read.
  template <class Body>
  void for_each_row(Range range, int64_t n, Range rows, int64_t s, Body body) const {
    for_each_direction(range, n, [&](int64_t d, Range) {
      const int64_t count = index.rows_at(index.step(s, d), rows);
      for (int64_t r = 0; r < count; ++r) body(d, rows.begin + r, row_of(d, r));
    });
  }
};

}  // namespace fusedlstm::cpu
