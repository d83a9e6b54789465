#include "plan_stack.h"

#include <algorithm>

#include "cost.h"
#include "plan_cost.h"
#include "plan_room.h"

namespace fusedlstm::cuda {
namespace {

constexpr int kMostParts = 64;
constexpr int64_t kLeastSteps = 8;  // of a part that the model may choose
// Of the memory that a stack takes one layer after another.
constexpr double kMostMemory = 1.1;

bool may_run_abreast(const Plan& plan, const Problem& p) {
  return plan.shape.transport != Transport::kStream && p.proj_size == 0 && p.L > 1 && p.D == 1 && p.M == 1 && p.T > 1;
}

// ---- memory: bytes for each row of all steps, beside the input and the weights --------------------------------------

// In inference, where it is tightest: the outputs of the layers abreast and the one below, and input products, whole or
// of a part.
double forward_bytes(const Problem& p, int abreast, int parts) {
  const double H = static_cast<double>(p.H), bytes = static_cast<double>(element_bytes(p.dtype));
  return (abreast + 1) * H * bytes + abreast * sizes_of(p.cell).gates * H * 4 / parts;
}
double kept_bytes(const Problem& p) {
  const CellSizes cell = sizes_of(p.cell);
  return static_cast<double>(p.L * p.H) *
         (static_cast<double>((cell.saved + 1) * static_cast<int>(element_bytes(p.dtype))) + 4.0 * cell.carried);
}
// The gates' gradients are needed whole, since a weight's gradient is one sum over all steps. Beside them the gradient
// of the last output, and first those between the layers, then the input's and what the weights' are made from.
double backward_bytes(const Problem& p, int abreast) {
  const CellSizes cell = sizes_of(p.cell);
  const double H = static_cast<double>(p.H), bytes = static_cast<double>(element_bytes(p.dtype));
  const double gates = cell.gates * (cell.apart() > 0 ? 2 : 1);
  return kept_bytes(p) + (abreast * gates + 1 + std::max(abreast - 1, 2)) * H * bytes;
}

bool has_memory(const Problem& p, int abreast, int parts) {
  if (p.pass == Pass::kForward) return forward_bytes(p, abreast, parts) <= kMostMemory * forward_bytes(p, 1, 1);
  const double before = kept_bytes(p) + sizes_of(p.cell).gates * static_cast<double>(p.H) * 4;  // the forward pass
  return backward_bytes(p, abreast) <= kMostMemory * std::max(before, backward_bytes(p, 1));
}

// ---- time -----------------------------------------------------------------------------------------------------------

double one_after_another(const Plan& plan, const Problem& p, const Device& d) {
  const double launch = costs_of(d.compute_capability).stream_step_us / 2;
  return p.L * (plan.microseconds + launch + layer_product_microseconds(p, d, d.sm_count));
}

// A layer starts its part when the one below has made it and the product is there: in each stage every layer runs one
// part. The host must be in time with all launches, a product and a recurrence for each.
double in_wavefront(const Plan& plan, Problem p, const Device& d, int layers, int parts) {
  const Costs& cost = costs_of(d.compute_capability);
  p.T = ceil_div(p.T, parts);
  const int taken = layers * plan.ctas_per_tile * plan.tiles, least = d.sm_count / 4;
  const double product = cost.stream_step_us + layer_product_microseconds(p, d, std::max(d.sm_count - taken, least));
  const double stage = resident_microseconds(plan.shape, p, d) + product;
  return std::max((parts + layers - 1) * stage, layers * parts * 2 * cost.stream_step_us);
}

double microseconds(const Plan& plan, const Problem& p, const Device& d, int abreast, int parts) {
  if (abreast == 1) return one_after_another(plan, p, d);
  Problem rest = p;
  rest.L = p.L % abreast;
  const double last = rest.L > 1    ? in_wavefront(plan, p, d, rest.L, parts)
                      : rest.L == 1 ? one_after_another(plan, rest, d)
                                    : 0;
  return p.L / abreast * in_wavefront(plan, p, d, abreast, parts) + last;
}

int most_abreast(const Plan& plan, const Problem& p, const Device& d) {
  return may_run_abreast(plan, p) ? std::max(1, std::min(p.L, layers_at_once(plan.shape, p, d))) : 1;
}

Plan with(Plan plan, const Problem& p, const Device& d, int abreast, int parts) {
  plan.microseconds = microseconds(plan, p, d, abreast, parts);
  plan.abreast = abreast;
  plan.parts = abreast > 1 ? parts : 1;
  return plan;
}

}  // namespace

Plan best_stack(const Plan& layer, const Problem& p, const Device& d) {
  Plan best = with(layer, p, d, 1, 1);
  const int most = most_abreast(layer, p, d);
  for (int abreast = 2; abreast <= most; ++abreast)
    for (int parts = 2; parts <= kMostParts && p.T / parts >= kLeastSteps; parts += 1 + parts / 8)
      if (has_memory(p, abreast, parts))
        if (const Plan other = with(layer, p, d, abreast, parts); other.microseconds < best.microseconds) best = other;
  return best;
}

Plan forced_stack(const Plan& layer, const Problem& p, const Device& d, const Request& request) {
  const int abreast = std::min(request.abreast, most_abreast(layer, p, d));
  return with(layer, p, d, abreast, static_cast<int>(std::min<int64_t>(request.parts, p.T)));
}

}  // namespace fusedlstm::cuda
