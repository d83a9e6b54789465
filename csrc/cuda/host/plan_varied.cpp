#include "plan_varied.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <stdexcept>

#include "cost.h"
#include "kernel_shapes.h"
#include "plan_cost.h"
#include "plan_request.h"
#include "plan_room.h"
#include "varied_resident.h"

namespace fusedlstm::cuda {
namespace {

ResidentSizes sizes_of(const VariedProblem& p) {
  return {fusedlstm::sizes_of(p.layer.cell).gates, p.layer.H};
}

int64_t bytes_of(const VariedProblem& p) {
  const ResidentSizes sizes = sizes_of(p);
  return p.layer.pass == Pass::kForward ? ResidentForward{sizes}.bytes() : ResidentBackward{sizes}.bytes();
}

bool has_kernel(const VariedProblem& p) {
  return has_resident(p.kind());
}

Misfit misfit_of(const VariedProblem& p, const Device& d, bool is_refused) {
  if (p.layer.dtype == Dtype::kFloat64) return {Reason::kFloat64};
  if (!has_kernel(p)) return {Reason::kNoneCompiled};
  if (d.capability_of_code() < kResidentCapability)
    return {Reason::kCapability, {kResidentCapability, d.capability_of_code()}};
  const ResidentSizes sizes = sizes_of(p);
  if (sizes.threads() > kResidentThreads) return {Reason::kUnits, {kResidentThreads / sizes.gates, p.layer.H}};
  const int64_t most = std::min<int64_t>(d.smem_bytes, most_shared_memory(d.capability_of_code()));
  if (bytes_of(p) > most) return {Reason::kSharedMemory, {most, bytes_of(p)}};
  if (is_refused) return {Reason::kRefused};
  return {};
}

// Of the sums over a row that its norms need, as far as one waits for another: each goes twice through the lanes of a
// warp. Forward, deviations follow from means; those of gates' norms are found together, and then those of c.
double norm_cycles(const VariedProblem& p, const Costs& cost) {
  const int of_norms = !p.has_norm ? 0 : p.kind() == VariedKind::kNormedGru ? 1 : 2;
  const int sums = of_norms * (p.layer.pass == Pass::kForward ? 2 : 1);
  return sums * (cost.barrier + cost.shared_store + (1 + 2 * 5) * cost.shared_load);
}

double local_microseconds(const VariedProblem& p, const Device& d) {
  const Costs& cost = costs_of(d.compute_capability);
  const ResidentSizes sizes = sizes_of(p);
  const double values = static_cast<double>(sizes.threads() * sizes.operand());
  // Every warp reads the operand, a vector at a time, and its own share of the weight.
  const double operand = static_cast<double>(sizes.threads() / 32 * (sizes.operand() / 4));
  const double weights = static_cast<double>(sizes.shared_vectors() * 16 * sizes.threads()) / cost.shared_bytes;
  // Backward, what forward kept is fetched when it is needed: before the norm of c, at the gates' norms and behind
  // them; and a unit adds up the parts of its gates.
  const bool forward = p.layer.pass == Pass::kForward;
  const double pointwise = cost.activations + static_cast<double>(p.layer.H) * cost.pair_issue * (forward ? 1 : 1.3) +
                           (forward ? 0 : 3 * cost.grid_round + static_cast<double>(sizes.gates) * cost.shared_load);
  const double cycles = cost.slack + 2 * cost.barrier + 2 * cost.shared_load + 2 * cost.shared_store +
                        std::max(values * cost.ffma, operand + weights) + norm_cycles(p, cost) + pointwise;
  const double waves = static_cast<double>(ceil_div(p.layer.B, d.sm_count));
  return cost.launch_us + waves * static_cast<double>(p.layer.T) * cycles / d.clock_mhz;
}

double step_microseconds(const VariedProblem& p, const Device& d) {
  return stream_microseconds(p.layer, d) +
         static_cast<double>(p.layer.T) * norm_cycles(p, costs_of(d.compute_capability)) / d.clock_mhz;
}

}  // namespace

VariedPlan make_varied_plan(const VariedProblem& p, const Device& d, const std::string& request_text, bool is_refused) {
  const Request request = parse_request(request_text);
  const bool is_named = request.transport && request.units == 0 && has_kernel(p);
  const bool wants_local = is_named && *request.transport == Transport::kLocal;
  const bool wants_stream = is_named && *request.transport == Transport::kStream;
  VariedPlan plan{p, Transport::kStream, 0, step_microseconds(p, d)};
  plan.misfit = misfit_of(p, d, is_refused);
  plan.is_forced = wants_local || wants_stream;
  if (plan.misfit.reason != Reason::kNone) {
    if (wants_local)
      throw std::invalid_argument("FUSEDLSTM_PLAN=" + request_text +
                                  " does not fit a layer with variants: " + to_string(plan.misfit));
    return plan;
  }
  const double local = local_microseconds(p, d);
  if (wants_stream || (!wants_local && local >= plan.microseconds)) return plan;
  plan.transport = Transport::kLocal;
  plan.smem_bytes = bytes_of(p);
  plan.microseconds = local;
  return plan;
}

std::string to_string(const VariedPlan& plan) {
  const Problem& p = plan.problem.layer;
  std::array<char, 256> text;
  if (plan.transport == Transport::kLocal)
    std::snprintf(text.data(), text.size(),
                  "%s with variants, local %s, %lld CTAs of a row, %lld bytes of shared memory, estimated %.0f us",
                  cell_name(p.cell), pass_name(p.pass), static_cast<long long>(p.B),
                  static_cast<long long>(plan.smem_bytes), plan.microseconds);
  else
    std::snprintf(text.data(), text.size(),
                  "%s with variants, stream %s, one product and one kernel per step, estimated %.0f us",
                  cell_name(p.cell), pass_name(p.pass), plan.microseconds);
  std::string line = text.data();
  if (plan.misfit.reason != Reason::kNone) line += "; local: " + to_string(plan.misfit);
  return line;
}

}  // namespace fusedlstm::cuda
