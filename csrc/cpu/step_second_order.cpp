#include "step_second_order.h"

#include <algorithm>
#include <utility>

#include "call/checked_steps.h"
#include "call/one_step.h"
#include "isa.h"
#include "matrix_sums.h"
#include "team.h"

namespace fusedlstm::cpu {
namespace {

// One step as a cell has it, with its gradients that arrive: of float32 or float64, checked; and the parts of it.
class StepInputs {
 public:
  const NamedCell& named;
  const CellSizes cell;
  const size_t states;
  Tensor x;
  Tensors before, after, weights;
  Tensor saved;
  OptionalTensors d_after;
  int64_t rows, hidden;

  StepInputs(const NamedCell& named, StepArguments& step, Tensors& kept, OptionalTensors& d_last)
      : named(named),
        cell(named.sizes),
        states(size_t(cell.states)),
        x(std::move(step.input)),
        before(std::move(step.states)),
        weights(std::move(step.weights)),
        d_after(std::move(d_last)) {
    STD_TORCH_CHECK(before.size() == states && d_after.size() == states && kept.size() == 3, "fusedlstm: expected ",
                    states, " states and gradients of them, and 3 tensors that a step kept, got ", before.size(), ", ",
                    d_after.size(), " and ", kept.size());
    STD_TORCH_CHECK(weights.size() == 2 || weights.size() == 4, "fusedlstm: expected 2 or 4 weights of a step, got ",
                    weights.size());
    STD_TORCH_CHECK(x.dim() == 2 && weights[0].dim() == 2,
                    "fusedlstm: expected input and weight_ih of a step with 2 dimensions, got ", x.dim(), " and ",
                    weights[0].dim());
    facts_ = Facts::of(x);
    rows = x.size(0);
    hidden = weights[0].size(0) / cell.gates;
    const int64_t sums = cell.gates * hidden;
    check(x, {rows, x.size(1)}, "input");
    for (const Tensor& state : before) check(state, {rows, hidden}, "states");
    check(weights[0], {sums, x.size(1)}, "weight_ih");
    check(weights[1], {sums, hidden}, "weight_hh");
    for (size_t i = 2; i < weights.size(); ++i) check(weights[i], {sums}, "biases");
    saved = as_rows(kept[1]);
    for (size_t i = 0; i < states; ++i) after.push_back(as_rows(kept[i == 0 ? 0 : 2]));
  }

  // Tensors that have gradients: input, states and weights.
  size_t count() const { return 1 + states + weights.size(); }
  const Tensor& tensor(size_t i) const { return i == 0 ? x : i <= states ? before[i - 1] : weights[i - 1 - states]; }

  // Checks that t has these sizes, and dtype and device of the input.
  void check(const Tensor& t, const Sizes& sizes, const char* name) const {
    check_sizes(t, sizes, name);
    const Facts facts = Facts::of(t);
    STD_TORCH_CHECK(facts.dtype == facts_.dtype && facts.device_type == facts_.device_type, "fusedlstm: expected ",
                    name, " of the input's dtype and on its device");
    check_memory(t, name);
  }

 private:
  Facts facts_;
};

// None for what operators return of size [0].
OptionalTensor present(const Tensor& t) {
  return t.dim() > 1 ? OptionalTensor(t) : std::nullopt;
}

// A gradient of both sums, and how it moves.
struct SumsGradients {
  OptionalTensor x, h, x_tangent, h_tangent;

  SumsGradients(const StepsResults& r, bool is_apart)
      : x(present(r.d_sums[0])),
        h(present(r.d_sums[is_apart ? 2 : 0])),
        x_tangent(present(r.d_sums[1])),
        h_tangent(present(r.d_sums[is_apart ? 3 : 1])) {}
};

// Adds the tangent of rows weight^T + bias.
void add_tangent(OptionalTensor& sum, const Tensor& rows, const Tensor& weight, const OptionalTensor& rows_dot,
                 const OptionalTensor& weight_dot, const OptionalTensor& bias_dot) {
  if (rows_dot) add_product(sum, rows_dot, transposed(weight));
  if (weight_dot) add_product(sum, rows, transposed(*weight_dot));
  if (!bias_dot) return;
  if (!sum) sum = zeros(weight, {rows.size(0), weight.size(0)});
  add_columns(*sum, 0, dense(*bias_dot), 0, weight.size(0));
}

// Gradients of both sums side by side as `saved` has them: one for each gate, of a cell with a gate that is apart two
// for the last.
Tensor side_by_side(const StepInputs& t, const Tensor& d_x, const Tensor& d_h) {
  if (t.cell.apart() == 0) return d_x;
  const int64_t sums = t.cell.gates * t.hidden;
  const Tensor both = zeros(d_x, {t.rows, sums + t.hidden});
  add_columns(both, 0, d_x, 0, sums);
  add_columns(both, sums, d_h, sums - t.hidden, t.hidden);
  return both;
}

// The opposite: adds them to each.
void add_from_side_by_side(const StepInputs& t, const Tensor& both, const Tensor& d_x, const Tensor& d_h) {
  const int64_t sums = t.cell.gates * t.hidden;
  add_columns(d_x, 0, both, 0, sums);
  if (t.cell.apart() == 0) return;  // they are one
  add_columns(d_h, 0, both, 0, sums - t.hidden);
  add_columns(d_h, sums - t.hidden, both, sums, t.hidden);
}

// Gradients for both biases, from those for the sums; of a cell that joins these they are equal, but share no memory.
void find_biases(const Tensor& d_x, const Tensor& d_h, bool needs_ih, bool needs_hh, OptionalTensor* found) {
  if (needs_ih) found[0] = sum_of_rows(d_x);
  if (needs_hh) found[1] = sum_of_rows(d_h);
}

}  // namespace

StepsResults second_order_of_steps(const NamedCell& cell, StepsArguments& arguments) {
  const CheckedSteps t(std::move(arguments), cell.sizes);
  StepsResults r = new_results(t);
  const StepsArgs a = args_of(t, r, cell.is_relu);
  struct Call {
    const StepsArgs& args;
    decltype(LayerKernels::second_order) kernel;
  } call{a, active_kernels(cell.kind, dtype_of(t.dtype)).second_order};
  run_team(
      threads_of_steps(t.rows * t.hidden), 0, 0,
      [](void* context, Share share, char*) {
        const Call& c = *static_cast<Call*>(context);
        c.kernel(c.args, share.of(c.args.rows));
      },
      &call);
  return r;
}

FoundGradients second_order_of_cell(const NamedCell& named, StepSecondOrderArguments& given) {
  const StepInputs t(named, given.step, given.kept, given.d_last);
  const size_t first = t.states, count = t.count();  // of the needs those of input, states and weights start at `first`
  const std::vector<bool>& needs = given.needs;
  OptionalTensors& dot = given.cotangents;
  STD_TORCH_CHECK(dot.size() == count && needs.size() == first + count, "fusedlstm: expected ", count,
                  " cotangents and ", first + count, " needs, got ", dot.size(), " and ", needs.size());
  for (size_t i = 0; i < count; ++i)
    if (dot[i]) t.check(*dot[i], Sizes(t.tensor(i).sizes().data(), t.tensor(i).dim()), "cotangents");
  const Tensor &w_ih = t.weights[0], &w_hh = t.weights[1], &h = t.before[0];
  dot.resize(first + 5);
  const OptionalTensor &x_dot = dot[0], &h_dot = dot[1], &w_ih_dot = dot[first + 1], &w_hh_dot = dot[first + 2];
  OptionalTensor sums, hidden_sums;
  add_tangent(sums, t.x, w_ih, x_dot, w_ih_dot, dot[first + 3]);
  add_tangent(t.cell.apart() > 0 ? hidden_sums : sums, h, w_hh, h_dot, w_hh_dot, dot[first + 4]);
  if (!sums) sums = zeros(w_ih, {t.rows, w_ih.size(0)});

  StepsArguments steps;
  steps.before = t.before;
  steps.after = t.after;
  steps.saved = t.saved;
  steps.sums = std::move(sums);
  steps.hidden_sums = std::move(hidden_sums);
  steps.before_tangent.assign(dot.begin() + 1, dot.begin() + 1 + std::ptrdiff_t(first));
  steps.d_after = t.d_after;
  const StepsResults r = second_order_of_steps(named, steps);

  OptionalTensors all(1 + first + count);
  SumsGradients d(r, t.cell.apart() > 0);
  if (given.leaves_sums && d.x_tangent) {
    const Tensor both = side_by_side(t, *d.x_tangent, *d.h_tangent);
    all[0] = viewed(both, {1, both.size(0), both.size(1)}, {both.numel(), both.stride(0), 1});
    d.x_tangent = d.h_tangent = std::nullopt;
  }
  for (size_t i = 0; i < first; ++i)
    if (needs[i]) all[1 + i] = r.after_tangent[i];
  const auto is_needed = [&](size_t i) { return needs[first + i]; };
  OptionalTensor* const found = all.data() + 1 + first;  // of input, states and weights
  if (is_needed(0)) {
    add_product(found[0], d.x_tangent, w_ih);
    add_product(found[0], d.x, w_ih_dot);
  }
  for (size_t i = 0; i < first; ++i)
    if (is_needed(1 + i)) found[1 + i] = present(r.d_before_tangent[i]);
  if (is_needed(1)) {
    add_product(found[1], d.h_tangent, w_hh);
    add_product(found[1], d.h, w_hh_dot);
  }
  OptionalTensor* const of_weights = found + 1 + first;
  if (is_needed(first + 1)) {
    add_product(of_weights[0], transposed(d.x_tangent), t.x);
    add_product(of_weights[0], transposed(d.x), x_dot);
  }
  if (is_needed(first + 2)) {
    add_product(of_weights[1], transposed(d.h_tangent), h);
    add_product(of_weights[1], transposed(d.h), h_dot);
  }
  if (t.weights.size() > 2 && d.x_tangent)
    find_biases(*d.x_tangent, *d.h_tangent, is_needed(first + 3), is_needed(first + 4), of_weights + 2);
  return {std::move(all)};
}

FoundGradients gradients_with_sums(const NamedCell& named, StepSumsBackwardArguments& given) {
  const StepInputs t(named, given.step, given.kept, given.d_last);
  const size_t count = t.count();
  const std::vector<bool>& needs = given.needs;
  STD_TORCH_CHECK(needs.size() == count, "fusedlstm: expected ", count, " needs, got ", needs.size());
  const Tensor d_sums = dense(as_rows(given.d_sums));
  t.check(d_sums, {t.rows, (t.cell.gates + (t.cell.apart() > 0)) * t.hidden}, "d_sums");

  OptionalTensors found(count);
  OptionalTensor d_x, d_h;
  if (std::any_of(t.d_after.begin(), t.d_after.end(), [](const OptionalTensor& d) { return d.has_value(); })) {
    StepsArguments steps;
    steps.before = t.before;
    steps.after = t.after;
    steps.saved = t.saved;
    steps.before_tangent.resize(t.states);
    steps.d_after = t.d_after;
    const StepsResults r = second_order_of_steps(named, steps);
    const SumsGradients d(r, t.cell.apart() > 0);
    d_x = d.x;
    d_h = d.h;
    for (size_t i = 0; i < t.states; ++i)
      if (needs[1 + i]) found[1 + i] = present(r.d_before[i]);
  } else {
    d_x = zeros(d_sums, {t.rows, t.cell.gates * t.hidden});
    d_h = t.cell.apart() > 0 ? zeros(d_sums, {t.rows, t.cell.gates * t.hidden}) : *d_x;
  }
  add_from_side_by_side(t, d_sums, *d_x, *d_h);

  OptionalTensor* const of_weights = found.data() + 1 + t.states;
  const std::ptrdiff_t weights = 1 + std::ptrdiff_t(t.states);
  if (needs[0]) add_product(found[0], d_x, t.weights[0]);
  if (needs[1]) add_product(found[1], d_h, t.weights[1]);
  if (needs[weights]) add_product(of_weights[0], transposed(d_x), t.x);
  if (needs[weights + 1]) add_product(of_weights[1], transposed(d_h), t.before[0]);
  if (t.weights.size() > 2) find_biases(*d_x, *d_h, needs[weights + 2], needs[weights + 3], of_weights + 2);
  return {std::move(found)};
}

}  // namespace fusedlstm::cpu
