#include "layer.h"

namespace fusedlstm::cuda {

Layer Layer::member(int64_t m) const {
  Layer one = *this;
  if (!is_ensemble) return one;
  one.is_ensemble = false;
  one.members = 1;
  one.input = of_member(input, m);
  for (View* each : {one.initial, one.reset_state})
    for (int i = 0; i < kMaxStates; ++i) each[i] = of_member(each[i], m);
  for (View* each : {one.weight_ih, one.weight_hh, one.bias_ih, one.bias_hh, one.weight_hr})
    for (int d = 0; d < directions; ++d) each[d] = of_member(each[d], m);
  if (lengths) one.lengths += m * batch;
  if (reset) one.reset += m * steps * batch;
  return one;
}

bool may_run_at_once(const Layer& layer) {
  constexpr int64_t kMostMembers = 65535;  // blocks of a grid in that dimension
  return layer.is_ensemble && layer.proj == 0 && layer.members <= kMostMembers &&
         is_int(layer.members * layer.directions * layer.rows);
}

Choice choose(Host& host, const Layer& layer, Pass pass, size_t layers) {
  return layer.rows == 0 ? Choice{} : host.choose(layer.problem(pass, static_cast<int>(layers)));
}

Problem Layer::problem(Pass pass, int layers) const {
  return {.cell = cell.kind,
          .T = steps,
          .B = batch,
          .H = hidden,
          .proj_size = proj,
          .D = static_cast<int>(directions),
          .M = static_cast<int>(members),
          .dtype = dtype,
          .allow_tf32 = allow_tf32,
          .pass = pass,
          .L = layers};
}

}  // namespace fusedlstm::cuda
