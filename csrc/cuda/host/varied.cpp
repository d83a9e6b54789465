#include "varied.h"

#include <stdexcept>

#include "layer.h"

namespace fusedlstm::cuda {
namespace {

// Of an array [1 or T, 1 or B, H].
Factors factors_of(const View& all) {
  if (!all.data) return {};
  return {all.data, all.sizes[0] > 1 ? all.strides[0] : 0, all.sizes[1] > 1 ? all.strides[1] : 0};
}

// What both passes of kernels are told.
VariedArgs arguments_of(const VariedRecurrence& r, const VariedKept& kept) {
  if (!is_int(r.steps * r.batch) || !is_int(r.cell.sizes.gates * r.hidden))
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
    a.zoneout[k] = factors_of(r.zoneout[k]);
    a.before[k] = kept.before[k].data;
  }
  a.dtype = r.dtype;
  a.kind = varied_kind(r.cell.kind, r.gain.data != nullptr);
  a.is_relu = r.cell.is_relu;
  a.direction = r.is_reverse ? 1 : 0;
  a.eps = r.eps;
  a.mask = factors_of(r.mask);
  a.bias = r.bias.data;
  a.weight_ch = r.weight_ch.data;
  a.gain = r.gain.data;
  a.gain_c = r.gain_c.data;
  a.bias_c = r.bias_c.data;
  a.saved = kept.saved.data;
  a.normed = kept.normed.data;
  a.scales = kept.scales.data;
  return a;
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

}  // namespace

void run_varied_forward(Host& host, const VariedRecurrence& r, const VariedResults& out) {
  VariedForwardArgs a{};
  static_cast<VariedArgs&>(a) = arguments_of(r, out);
  clear(host, r, {out.output, out.saved, out.before[0], out.before[1], out.normed, out.scales});
  if (r.batch * r.hidden == 0) return;
  const Buffer sums(host, "sums", r.dtype, {r.batch, r.cell.sizes.gates * r.hidden});
  Buffer operand;
  if (r.mask.data) operand = Buffer(host, "operand", r.dtype, {r.batch, r.hidden});
  a.from_input = r.from_input.data;
  a.sums = sums.data;
  a.operand = operand.data;
  a.output = out.output.data;
  for (int k = 0; k < kMaxStates; ++k) a.last[k] = out.last[k].data;
  const View& h = r.mask.data ? operand : out.last[0];
  const View weight_hh = r.weight_hh.transposed();
  host.launches_varied({r.cell.name, r.dtype, Pass::kForward});
  for (int64_t step = -1; step < r.steps; ++step) {
    if (step >= 0) host.multiply(sums, h, weight_hh, false, r.allow_tf32);
    check(launch_varied_forward(a, step, host.stream), "varied forward step");
  }
}

void run_varied_backward(Host& host, const VariedRecurrence& r, const VariedIncoming& in, const VariedGradients& g) {
  VariedBackwardArgs a{};
  static_cast<VariedArgs&>(a) = arguments_of(r, in);
  clear(host, r, {g.from_input, g.from_hidden});
  for (const View& d : g.reset_state) host.zero(d);
  if (r.batch * r.hidden == 0) {
    for (const View& d : {g.bias, g.weight_ch, g.gain, g.gain_c, g.bias_c}) host.zero(d);
    return;
  }
  const Buffer product(host, "product", r.dtype, {r.batch, r.hidden});
  const ParameterSums bias(host, r, g.bias), weight_ch(host, r, g.weight_ch), gain(host, r, g.gain),
      gain_c(host, r, g.gain_c), bias_c(host, r, g.bias_c);
  a.d_parameters = {bias.rows(), weight_ch.rows(), gain.rows(), gain_c.rows(), bias_c.rows()};
  a.d_output = in.d_output.data;
  a.product = product.data;
  a.d_from_input = g.from_input.data;
  a.d_from_hidden = g.from_hidden.data;
  for (int k = 0; k < kMaxStates; ++k) {
    a.d_last[k] = in.d_last[k].data;
    a.d_initial[k] = g.initial[k].data;
    a.d_reset_state[k] = g.reset_state[k].data;
  }
  const View& d_sums = g.from_hidden.data ? g.from_hidden : g.from_input;
  host.launches_varied({r.cell.name, r.dtype, Pass::kBackward});
  for (int64_t step = r.steps - 1; step >= -1; --step) {
    check(launch_varied_backward(a, step, host.stream), "varied backward step");
    if (step >= 0)
      host.multiply(product, d_sums[r.is_reverse ? r.steps - 1 - step : step], r.weight_hh, false, r.allow_tf32);
  }
  for (const ParameterSums* each : {&bias, &weight_ch, &gain, &gain_c, &bias_c}) each->finish();
}

}  // namespace fusedlstm::cuda
