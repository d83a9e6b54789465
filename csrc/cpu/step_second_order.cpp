#include "step_second_order.h"

#include <algorithm>
#include <utility>

#include "call/checked_steps.h"
#include "call/one_step.h"
#include "isa.h"
#include "matrix_sums.h"
#include "plan.h"
#include "team.h"

namespace fusedlstm::cpu {
namespace {

// One step as a cell has it, with the gradients that arrive at its states, checked. Its products are in its own dtype,
// what is between them in `acc`.
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
  ScalarType dtype, acc;

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
    dtype = x.scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16 ||
                        dtype == ScalarType::Half,
                    "fusedlstm: expected input of dtype float32, float64, bfloat16 or float16, got ", name_of(dtype));
    acc = dtype == ScalarType::Double ? dtype : ScalarType::Float;
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

  // What `<cell>_steps_second_order` takes of it, where nothing moves.
  StepsArguments steps() const {
    StepsArguments steps;
    for (size_t i = 0; i < states; ++i) {
      steps.before.push_back(as_dtype(before[i], acc));
      steps.after.push_back(as_dtype(after[i], acc));
      steps.d_after.push_back(as_dtype(d_after[i], acc));
    }
    steps.saved = as_dtype(saved, acc);
    steps.before_tangent.resize(states);
    return steps;
  }

  // Tensors that have gradients: input, states and weights.
  size_t count() const { return 1 + states + weights.size(); }
  const Tensor& tensor(size_t i) const { return i == 0 ? x : i <= states ? before[i - 1] : weights[i - 1 - states]; }

  // Checks that t has these sizes, and dtype and device of the input.
  void check(const Tensor& t, const Sizes& sizes, const char* name) const {
    check_sizes(t, sizes, name);
    const Facts facts = Facts::of(t);
    check_dtype(facts.dtype, facts_.dtype, name);
    STD_TORCH_CHECK(facts.device_type == facts_.device_type, "fusedlstm: expected ", name, " on the input's device");
    check_memory(t, name);
  }

 private:
  Facts facts_;
};

// None for what operators return of size [0].
OptionalTensor present(const Tensor& t) {
  return t.dim() > 1 ? OptionalTensor(t) : std::nullopt;
}

// Gradients of the sums that enter the gates, of the part of the input and of that of h: one tensor, if these are
// joined.
struct SumsGradients {
  OptionalTensor x, h;

  // Those of `r`, or how they move.
  static SumsGradients of(const StepsResults& r, bool is_tangent, bool is_apart) {
    return {present(r.d_sums[is_tangent]), present(r.d_sums[2 * is_apart + is_tangent])};
  }
  SumsGradients as(ScalarType dtype) const {
    SumsGradients d{as_dtype(x, dtype), std::nullopt};
    d.h = x && h && x->get() == h->get() ? d.x : as_dtype(h, dtype);
    return d;
  }
};

// Adds the products of the tangent of rows weight^T.
void add_tangent(OptionalTensor& sum, const Tensor& rows, const Tensor& weight, const OptionalTensor& rows_dot,
                 const OptionalTensor& weight_dot) {
  if (rows_dot) add_product(sum, rows_dot, transposed(weight));
  if (weight_dot) add_product(sum, rows, transposed(*weight_dot));
}

// Adds a bias to sums in `acc`, which are zeros where they are none.
void add_bias(const StepInputs& t, OptionalTensor& sum, const OptionalTensor& bias) {
  if (!bias) return;
  if (!sum) sum = zeros(t.x, {t.rows, bias->size(0)}, t.acc);
  add_columns(*sum, 0, dense(as_dtype(*bias, t.acc)), 0, bias->size(0));
}

// Gradients of the sums side by side as `saved` has them: one for each gate, of a cell with a gate that is apart two
// for the last.
Tensor side_by_side(const StepInputs& t, const SumsGradients& d) {
  if (t.cell.apart() == 0) return *d.x;
  const int64_t sums = t.cell.gates * t.hidden;
  const Tensor both = zeros(t.x, {t.rows, sums + t.hidden}, t.acc);
  add_columns(both, 0, *d.x, 0, sums);
  add_columns(both, sums, *d.h, sums - t.hidden, t.hidden);
  return both;
}

// The opposite: adds them to each.
void add_from_side_by_side(const StepInputs& t, const Tensor& both, const SumsGradients& d) {
  const int64_t sums = t.cell.gates * t.hidden;
  add_columns(*d.x, 0, both, 0, sums);
  if (t.cell.apart() == 0) return;
  add_columns(*d.h, 0, both, 0, sums - t.hidden);
  add_columns(*d.h, sums - t.hidden, both, sums, t.hidden);
}

// Gradients of both biases, which share no memory, from those of the sums in `acc`.
void find_biases(const StepInputs& t, const SumsGradients& d, bool needs_ih, bool needs_hh, OptionalTensor* found) {
  if (needs_ih) found[0] = as_dtype(sum_of_rows(*d.x), t.dtype);
  if (needs_hh) found[1] = as_dtype(sum_of_rows(*d.h), t.dtype);
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
  const bool is_apart = t.cell.apart() > 0;
  OptionalTensor sums, hidden_sums;
  OptionalTensor& of_hidden = is_apart ? hidden_sums : sums;
  add_tangent(sums, t.x, w_ih, x_dot, w_ih_dot);
  add_tangent(of_hidden, h, w_hh, h_dot, w_hh_dot);
  sums = sums ? as_dtype(*sums, t.acc) : zeros(t.x, {t.rows, w_ih.size(0)}, t.acc);
  hidden_sums = as_dtype(hidden_sums, t.acc);
  add_bias(t, sums, dot[first + 3]);
  add_bias(t, of_hidden, dot[first + 4]);

  StepsArguments steps = t.steps();
  steps.sums = std::move(sums);
  steps.hidden_sums = std::move(hidden_sums);
  for (size_t i = 0; i < first; ++i) steps.before_tangent[i] = as_dtype(dot[1 + i], t.acc);
  const StepsResults r = second_order_of_steps(named, steps);

  OptionalTensors all(1 + first + count);
  const SumsGradients d = SumsGradients::of(r, false, is_apart).as(t.dtype);
  SumsGradients moved = SumsGradients::of(r, true, is_apart);
  const auto is_needed = [&](size_t i) { return needs[first + i]; };
  OptionalTensor* const found = all.data() + 1 + first;  // of input, states and weights
  OptionalTensor* const of_weights = found + 1 + first;
  if (given.leaves_sums && moved.x) {
    const Tensor both = as_dtype(side_by_side(t, moved), t.dtype);
    all[0] = viewed(both, {1, both.size(0), both.size(1)}, {both.numel(), both.stride(0), 1});
    moved = {};
  } else if (t.weights.size() > 2 && moved.x) {
    find_biases(t, moved, is_needed(first + 3), is_needed(first + 4), of_weights + 2);
  }
  moved = moved.as(t.dtype);
  for (size_t i = 0; i < first; ++i) {
    if (needs[i]) all[1 + i] = as_dtype(r.after_tangent[i], t.dtype);
    if (is_needed(1 + i)) found[1 + i] = as_dtype(present(r.d_before_tangent[i]), t.dtype);
  }
  if (is_needed(0)) {
    add_product(found[0], moved.x, w_ih);
    add_product(found[0], d.x, w_ih_dot);
  }
  if (is_needed(1)) {
    add_product(found[1], moved.h, w_hh);
    add_product(found[1], d.h, w_hh_dot);
  }
  if (is_needed(first + 1)) {
    add_product(of_weights[0], transposed(moved.x), t.x);
    add_product(of_weights[0], transposed(d.x), x_dot);
  }
  if (is_needed(first + 2)) {
    add_product(of_weights[1], transposed(moved.h), h);
    add_product(of_weights[1], transposed(d.h), h_dot);
  }
  return {std::move(all)};
}

FoundGradients gradients_with_sums(const NamedCell& named, StepSumsBackwardArguments& given) {
  const StepInputs t(named, given.step, given.kept, given.d_last);
  const size_t count = t.count();
  const std::vector<bool>& needs = given.needs;
  STD_TORCH_CHECK(needs.size() == count, "fusedlstm: expected ", count, " needs, got ", needs.size());
  const Tensor d_sums = as_rows(given.d_sums);
  t.check(d_sums, {t.rows, (t.cell.gates + (t.cell.apart() > 0)) * t.hidden}, "d_sums");

  const bool is_apart = t.cell.apart() > 0;
  OptionalTensors found(count);
  SumsGradients d;
  if (std::any_of(t.d_after.begin(), t.d_after.end(), [](const OptionalTensor& d) { return d.has_value(); })) {
    StepsArguments steps = t.steps();
    const StepsResults r = second_order_of_steps(named, steps);
    d = SumsGradients::of(r, false, is_apart);
    for (size_t i = 0; i < t.states; ++i)
      if (needs[1 + i]) found[1 + i] = as_dtype(present(r.d_before[i]), t.dtype);
  } else {
    d.x = zeros(t.x, {t.rows, t.cell.gates * t.hidden}, t.acc);
    d.h = is_apart ? zeros(t.x, {t.rows, t.cell.gates * t.hidden}, t.acc) : d.x;
  }
  add_from_side_by_side(t, dense(as_dtype(d_sums, t.acc)), d);

  OptionalTensor* const of_weights = found.data() + 1 + t.states;
  const size_t weights = 1 + t.states;
  if (t.weights.size() > 2) find_biases(t, d, needs[weights + 2], needs[weights + 3], of_weights + 2);
  d = d.as(t.dtype);
  if (needs[0]) add_product(found[0], d.x, t.weights[0]);
  if (needs[1]) add_product(found[1], d.h, t.weights[1]);
  if (needs[weights]) add_product(of_weights[0], transposed(d.x), t.x);
  if (needs[weights + 1]) add_product(of_weights[1], transposed(d.h), t.before[0]);
  return {std::move(found)};
}

}  // namespace fusedlstm::cpu
