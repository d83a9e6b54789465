#include "varied.h"

#include <stdexcept>

#include "layer.h"

namespace fusedlstm::cuda {
namespace {

// Of an array [1 or T, 1 or B, H].
Factors factors_of(const View& all, bool are_bools = false) {
  if (!all.data) return {};
  return {all.data, all.sizes[0] > 1 ? all.strides[0] : 0, all.sizes[1] > 1 ? all.strides[1] : 0, are_bools};
}

int64_t gates_of(const VariedRecurrence& r) {
  return r.cell.sizes.gates * r.hidden;
}

// What both passes of kernels are told.
VariedArgs arguments_of(const VariedRecurrence& r, const VariedKept& kept) {
  if (!is_int(r.steps * r.batch) || !is_int(gates_of(r)))
    throw std::runtime_error("fusedlstm: expected steps * batch and rows of weight_hh below 2^31");
  VariedArgs a{};
  a.rows.T = static_cast<int>(r.steps);
  a.rows.B = static_cast<int>(r.batch);
  a.rows.N = a.rows.T * a.rows.B;
  a.rows.H = a.rows.R = static_cast<int>(r.hidden);
  a.rows.D = a.rows.M = 1;
  a.rows.lengths = r.lengths;
  a.rows.reset = r.reset;
  for (int k = 0; k < kMaxStates; ++k) {
    a.rows.initial[k] = r.initial[k].data;
    a.rows.reset_state[k] = r.reset_state[k].data;
    a.zoneout[k] = factors_of(r.zoneout[k].part, r.zoneout[k].is_chosen);
    a.before[k] = kept.before[k].data;
  }
  a.dtype = r.dtype;
  a.kind = varied_kind(r.cell.kind, r.gain.data != nullptr);
  a.is_relu = r.cell.is_relu;
  a.direction = r.is_reverse ? 1 : 0;
  a.eps = r.eps;
  a.mask = factors_of(r.mask);
  a.bias_ih = r.bias_ih.data;
  a.bias = r.bias.data;
  a.weight_ch = r.weight_ch.data;
  a.gain_ih = r.gain_ih.data;
  a.gain = r.gain.data;
  a.gain_c = r.gain_c.data;
  a.bias_c = r.bias_c.data;
  a.saved = kept.saved.data;
  a.entered = kept.entered.data;
  a.normed_ih = kept.normed_ih.data;
  a.normed = kept.normed.data;
  a.scales = kept.scales.data;
  return a;
}

VariedProblem problem_of(const VariedRecurrence& r, Pass pass) {
  const bool has_norm = r.gain.data || r.gain_c.data;
  return {{r.cell.kind, r.steps, r.batch, r.hidden, 0, 1, 1, r.dtype, r.allow_tf32, pass}, has_norm};
}

// Of something for each row of all steps, [T, B, n], its matrix.
View rows_of(const VariedRecurrence& r, const View& all) {
  return all.as({r.steps * r.batch, all.sizes[2]});
}

// Kernels write nothing of rows that are not run.
void clear(Host& host, const VariedRecurrence& r, std::initializer_list<View> results) {
  if (!r.lengths) return;
  for (const View& each : results) host.zero(each);
}

// The gradient of a parameter, which batch rows add up each for itself. In this order the sum is the same in every run.
class ParameterSums {
 public:
  ParameterSums(Host& host, const VariedRecurrence& r, const View& result) : host_(host), result_(result) {
    if (!result.data) return;
    rows_ = Buffer(host, "parameter sums", r.dtype, {r.batch, result.sizes[0]});
    host.zero(rows_);
  }
  void* rows() const { return rows_.data; }
  void finish() const {
    if (result_.data) host_.sum_rows(result_, rows_);
  }

 private:
  Host& host_;
  const View result_;
  Buffer rows_;
};

// The gradients that follow from those of the gates' sums of all rows.
void multiply_gradients(Host& host, const VariedRecurrence& r, const VariedIncoming& in, const VariedGradients& g,
                        const View& d_from_input, const View& d_from_hidden) {
  if (r.steps == 0) {
    for (const View& d : {g.weight_ih, g.weight_hh, g.bias_ih}) host.zero(d);
    return;
  }
  if (g.input.data) host.multiply(rows_of(r, g.input), d_from_input, r.weight_ih, false, r.allow_tf32);
  if (g.weight_ih.data) {
    Buffer memory;
    const View input = rows_of(r, contiguous(host, "input", r.input, memory));
    host.multiply(g.weight_ih, d_from_input.transposed(), input, false, r.allow_tf32);
  }
  if (g.weight_hh.data) {
    const View& entered = in.entered.data ? in.entered : in.before[0];
    host.multiply(g.weight_hh, d_from_hidden.transposed(), rows_of(r, entered), false, r.allow_tf32);
  }
  if (g.bias_ih.data) host.sum_rows(g.bias_ih, d_from_input);
}

// Whether one launch ran all steps, as the plan may say.
template <class Args>
bool run_on_chip(Host& host, const VariedRecurrence& r, Args& a, Pass pass) {
  const VariedPlan plan = host.choose_varied(problem_of(r, pass));
  if (plan.transport != Transport::kLocal) return false;
  a.weight_hh = r.weight_hh.data;
  host.launches_varied({r.cell.name, r.dtype, pass, plan.transport});
  const cudaError_t error = launch_varied_resident(a, host.stream);
  if (error != cudaSuccess) host.replace_varied(plan, error);
  return error == cudaSuccess;
}

// Forward by products of the library and a kernel between them. last: the states h.
void run_forward_steps(Host& host, const VariedRecurrence& r, VariedForwardArgs a, const View& last) {
  const Buffer sums(host, "sums", r.dtype, {r.batch, gates_of(r)});
  Buffer operand;
  if (r.mask.data) operand = Buffer(host, "operand", r.dtype, {r.batch, r.hidden});
  a.sums = sums.data;
  a.operand = operand.data;
  const View& h = r.mask.data ? operand : last;
  const View weight_hh = r.weight_hh.transposed();
  host.launches_varied({r.cell.name, r.dtype, Pass::kForward});
  for (int64_t step = -1; step < r.steps; ++step) {
    if (step >= 0) host.multiply(sums, h, weight_hh, false, r.allow_tf32);
    check(launch_varied_forward(a, step, host.stream), "varied forward step");
  }
}

// Backward likewise. d_sums: of all steps, what the products take.
void run_backward_steps(Host& host, const VariedRecurrence& r, VariedBackwardArgs a, const View& d_sums) {
  const Buffer product(host, "product", r.dtype, {r.batch, r.hidden});
  a.product = product.data;
  host.launches_varied({r.cell.name, r.dtype, Pass::kBackward});
  for (int64_t step = r.steps - 1; step >= -1; --step) {
    check(launch_varied_backward(a, step, host.stream), "varied backward step");
    if (step < 0) break;
    const int64_t t = r.is_reverse ? r.steps - 1 - step : step;
    host.multiply(product, d_sums.narrow(0, t * r.batch, r.batch), r.weight_hh, false, r.allow_tf32);
  }
}

}  // namespace

void run_varied_forward(Host& host, const VariedRecurrence& r, const VariedResults& out) {
  VariedForwardArgs a{};
  static_cast<VariedArgs&>(a) = arguments_of(r, out);
  clear(host, r, {out.output, out.saved, out.before[0], out.before[1], out.normed_ih, out.normed, out.scales});
  if (r.batch * r.hidden == 0) return;
  Buffer memory;
  const View input = rows_of(r, contiguous(host, "input", r.input, memory));
  const Buffer from_input(host, "from_input", r.dtype, {r.steps * r.batch, gates_of(r)});
  if (r.steps > 0) host.multiply(from_input, input, r.weight_ih.transposed(), false, r.allow_tf32);
  a.from_input = from_input.data;
  a.output = out.output.data;
  for (int k = 0; k < kMaxStates; ++k) a.last[k] = out.last[k].data;
  if (run_on_chip(host, r, a, Pass::kForward)) return;
  run_forward_steps(host, r, a, out.last[0]);
}

void run_varied_backward(Host& host, const VariedRecurrence& r, const VariedIncoming& in, const VariedGradients& g) {
  VariedBackwardArgs a{};
  static_cast<VariedArgs&>(a) = arguments_of(r, in);
  for (const View& d : g.reset_state) host.zero(d);
  if (r.batch * r.hidden == 0) {
    for (const View& d :
         {g.input, g.weight_ih, g.weight_hh, g.bias_ih, g.bias, g.weight_ch, g.gain_ih, g.gain, g.gain_c, g.bias_c})
      host.zero(d);
    return;
  }
  const int64_t rows = r.steps * r.batch;
  const Buffer d_from_input(host, "d_from_input", r.dtype, {rows, gates_of(r)});
  Buffer d_from_hidden;  // where it is another
  if (r.gain_ih.data || (r.cell.sizes.apart() > 0 && !r.gain.data))
    d_from_hidden = Buffer(host, "d_from_hidden", r.dtype, {rows, gates_of(r)});
  clear(host, r, {d_from_input, d_from_hidden});
  const ParameterSums bias(host, r, g.bias), weight_ch(host, r, g.weight_ch), gain_ih(host, r, g.gain_ih),
      gain(host, r, g.gain), gain_c(host, r, g.gain_c), bias_c(host, r, g.bias_c);
  a.d_parameters = {bias.rows(), weight_ch.rows(), gain_ih.rows(), gain.rows(), gain_c.rows(), bias_c.rows()};
  a.d_output = in.d_output.data;
  a.d_from_input = d_from_input.data;
  a.d_from_hidden = d_from_hidden.data;
  for (int k = 0; k < kMaxStates; ++k) {
    a.d_last[k] = in.d_last[k].data;
    a.d_initial[k] = g.initial[k].data;
    a.d_reset_state[k] = g.reset_state[k].data;
  }
  const View& d_sums = d_from_hidden.data ? d_from_hidden : d_from_input;
  if (!run_on_chip(host, r, a, Pass::kBackward)) run_backward_steps(host, r, a, d_sums);
  multiply_gradients(host, r, in, g, d_from_input, d_sums);
  for (const ParameterSums* each : {&bias, &weight_ch, &gain_ih, &gain, &gain_c, &bias_c}) each->finish();
}

}  // namespace fusedlstm::cuda
