#include "plan.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <optional>
#include <stdexcept>

#include "kernel_shapes.h"
#include "plan_cost.h"
#include "plan_room.h"
#include "plan_stack.h"

namespace fusedlstm::cuda {
namespace {

// Among which the planner chooses. BULK waits for a measurement that says where it is faster than CLUSTER, if anywhere.
constexpr std::array kResident{Transport::kLocal, Transport::kCluster, Transport::kGrid, Transport::kMesh};

std::string text(const char* format, auto... values) {
  std::array<char, 256> buffer;
  std::snprintf(buffer.data(), buffer.size(), format, values...);
  return buffer.data();
}

// ---- what fits: the one place that decides and checks; plan_misfit explains
// ---------------------------------------------------

// Why no resident kernel of this transport can run the problem, whatever its shape.
Misfit obstacle(Transport transport, const Problem& p, const Device& d) {
  const Arithmetic arithmetic = arithmetic_of(p);
  if (arithmetic == Arithmetic::kFloat64) return {Reason::kFloat64};
  const int needed = needed_capability(transport, arithmetic);
  if (d.capability_of_code() < needed) return {Reason::kCapability, {needed, d.capability_of_code()}};
  if (is_cooperative(transport)) {
    if (!d.cooperative_launch) return {Reason::kNoCooperativeLaunch};
    if (p.T < 2) return {Reason::kOneStep};
  }
  return {};
}

// Why this shape does not fit.
Misfit misfit(const KernelShape& shape, const Problem& p, const Device& d) {
  const Arithmetic arithmetic = arithmetic_of(p);
  const int64_t k = product_k(p, arithmetic), capacity = k_capacity(shape, arithmetic);
  const int64_t ctas = ctas_per_tile(shape, p), all = ctas * batch_tiles(shape, p) * p.D;
  const int units = units_per_cta(shape, arithmetic), bytes = smem_bytes(shape, arithmetic);
  if (k > capacity) return {Reason::kK, {capacity, k, p.H}};
  const int64_t most = std::min<int64_t>(d.smem_bytes, most_shared_memory(d.capability_of_code()));
  if (bytes > most) return {Reason::kSharedMemory, {most, bytes}};
  for (const RefusedKernel& refused : d.refused)
    if (refused.is_of(arithmetic, shape, ctas)) return {Reason::kRefused};
  switch (shape.transport) {
    case Transport::kLocal:
      if (ctas > 1) return {Reason::kUnits, {units, p.H}};
      break;
    case Transport::kCluster:
    case Transport::kBulk:
      if (ctas < 2) return {Reason::kClusterTooSmall, {units}};
      if (ctas > kMaxClusterSize) return {Reason::kClusterTooLarge, {kMaxClusterSize, ctas}};
      if (resident_clusters(d, ctas) == 0) return {Reason::kNoRoomForClusters, {ctas}};
      break;
    case Transport::kGrid:  // all CTAs must run at once, since they wait for each other
      if (all > d.sm_count) return {Reason::kMoreCtasThanSms, {d.sm_count, all}};
      break;
    case Transport::kMesh:  // and so must all clusters
      if (const int64_t most = resident_clusters(d, kMeshClusterSize), clusters = all / kMeshClusterSize;
          clusters > most)
        return {Reason::kMoreClustersThanRun, {most, kMeshClusterSize, clusters}};
      break;
    case Transport::kStream:
      break;
  }
  return {};
}

// ---- choosing -----------------------------------------------------------------------------------------------------

Plan stream_plan(const Problem& p, const Device& d) {
  return {.arithmetic = arithmetic_of(p),
          .shape_index = -1,
          .shape = {p.cell, Transport::kStream, p.pass, 0, 0, 0, 0, 0},
          .ctas_per_tile = 0,
          .tiles = 0,
          .members = 1,
          .smem_bytes = 0,
          .microseconds = stream_microseconds(p, d),
          .proj_size = p.proj_size};
}

// Of one layer, or of all layers of a stack.
Plan of_problem(const Plan& layer, const Problem& p, const Device& d) {
  return p.L > 1 ? best_stack(layer, p, d) : layer;
}

Plan resident_plan(int shape_index, const Problem& p, const Device& d) {
  const KernelShape& shape = kKernelShapes[static_cast<size_t>(shape_index)];
  const Arithmetic arithmetic = arithmetic_of(p);
  return {.arithmetic = arithmetic,
          .shape_index = shape_index,
          .shape = shape,
          .ctas_per_tile = static_cast<int>(ctas_per_tile(shape, p)),
          .tiles = static_cast<int>(batch_tiles(shape, p)),
          .members = members_at_once(shape, p, d),
          .smem_bytes = requested_smem_bytes(shape, arithmetic, d),
          .microseconds = resident_microseconds(shape, p, d),
          .proj_size = p.proj_size};
}

// Calls `take` with the plan of each kernel of one resident transport that fits and that the request allows; else
// returns why there is none.
template <class Take>
Misfit plans_of(Transport transport, const Request& request, const Problem& p, const Device& d, Take take) {
  const Arithmetic arithmetic = arithmetic_of(p);
  Misfit why_not = obstacle(transport, p, d);
  if (why_not.reason != Reason::kNone) return why_not;
  why_not = {request.k > 0       ? Reason::kNotCompiledForK
             : request.units > 0 ? Reason::kNotCompiled
                                 : Reason::kNoneCompiled,
             {request.units, request.batch_rows, request.k}};
  bool fits = false;
  for (int i = 0; i < static_cast<int>(kKernelShapes.size()); ++i) {
    const KernelShape& shape = kKernelShapes[static_cast<size_t>(i)];
    if (shape.cell != p.cell || shape.transport != transport || shape.pass != p.pass || !is_compiled(shape, arithmetic))
      continue;
    if (request.units > 0 &&
        (units_per_cta(shape, arithmetic) != request.units || shape.batch_rows() != request.batch_rows))
      continue;
    if (request.k > 0 && k_capacity(shape, arithmetic) != request.k) continue;
    const Misfit found = misfit(shape, p, d);
    if (found.reason == Reason::kNone) {
      fits = true;
      take(of_problem(resident_plan(i, p, d), p, d));
    } else {
      why_not = found;  // shapes are listed from small to large: the last reason is that of the largest
    }
  }
  return fits ? Misfit{} : why_not;
}

// The best plan of one resident transport; else why there is none.
std::optional<Plan> best_of(Transport transport, const Request& request, const Problem& p, const Device& d,
                            Misfit& why_not) {
  std::optional<Plan> best;
  why_not = plans_of(transport, request, p, d, [&](const Plan& plan) {
    if (!best || plan.microseconds < best->microseconds) best = plan;
  });
  return best;
}

std::string misfit_text(Transport transport, const Misfit& misfit) {
  return std::string(transport_name(transport)) + ": " + to_string(misfit);
}

}  // namespace

Arithmetic arithmetic_of(const Problem& problem) {
  switch (problem.dtype) {
    case Dtype::kBFloat16:
      return Arithmetic::kBFloat16;
    case Dtype::kFloat16:
      return Arithmetic::kFloat16;
    case Dtype::kFloat64:
      return Arithmetic::kFloat64;
    case Dtype::kFloat32:
      break;
  }
  return problem.allow_tf32 ? Arithmetic::kTf32 : Arithmetic::kFloat32;
}

Plan make_plan(const Problem& problem, const Device& device, const std::string& request_text) {
  const Request request = parse_request(request_text);
  if (problem.L > 1 && request.abreast > 0) {  // of the kernel that a layer has by itself
    Problem layer = problem;
    layer.L = 1;
    return forced_stack(make_plan(layer, device, request_text), problem, device, request);
  }
  Plan best = of_problem(stream_plan(problem, device), problem, device);
  if (request.transport == Transport::kStream) return best;
  if (request.transport) {
    Misfit why_not;
    if (const auto forced = best_of(*request.transport, request, problem, device, why_not)) return *forced;
    throw std::invalid_argument("FUSEDLSTM_PLAN=" + request_text +
                                " does not fit: " + misfit_text(*request.transport, why_not));
  }
  std::array<Misfit, kTransports> misfits{};
  for (const Transport transport : kResident) {
    const auto plan = best_of(transport, request, problem, device, misfits[static_cast<size_t>(transport)]);
    if (plan && plan->microseconds < best.microseconds) best = *plan;
  }
  best.misfits = misfits;
  return best;
}

std::vector<Plan> plans_that_fit(const Problem& problem, const Device& device, int most) {
  std::vector<Plan> plans;
  for (const Transport transport : kResident)
    (void)plans_of(transport, {}, problem, device, [&](const Plan& plan) { plans.push_back(plan); });
  const auto is_cheaper = [](const Plan& a, const Plan& b) { return a.microseconds < b.microseconds; };
  std::stable_sort(plans.begin(), plans.end(), is_cheaper);
  if (plans.size() > static_cast<size_t>(most)) plans.resize(static_cast<size_t>(most));
  const Plan stream = of_problem(stream_plan(problem, device), problem, device);
  plans.insert(std::upper_bound(plans.begin(), plans.end(), stream, is_cheaper), stream);
  return plans;
}

const char* transport_name(Transport transport) {
  switch (transport) {
    case Transport::kStream:
      return "stream";
    case Transport::kLocal:
      return "local";
    case Transport::kCluster:
      return "cluster";
    case Transport::kGrid:
      return "grid";
    case Transport::kBulk:
      return "bulk";
    case Transport::kMesh:
      return "mesh";
  }
  return "unknown";
}

const char* cell_name(CellKind cell) {
  switch (cell) {
    case CellKind::kLstm:
      return "lstm";
    case CellKind::kGru:
      return "gru";
    case CellKind::kRnn:
      return "rnn";
  }
  return "unknown";
}

const char* pass_name(Pass pass) {
  return pass == Pass::kForward ? "forward" : "backward";
}

const char* arithmetic_name(Arithmetic arithmetic) {
  switch (arithmetic) {
    case Arithmetic::kBFloat16:
      return "bfloat16";
    case Arithmetic::kFloat16:
      return "float16";
    case Arithmetic::kTf32:
      return "tf32";
    case Arithmetic::kFloat32:
      return "float32";
    case Arithmetic::kFloat64:
      return "float64";
  }
  return "unknown";
}

std::string to_string(const Plan& plan) {
  const char *cell = cell_name(plan.shape.cell), *transport = transport_name(plan.shape.transport);
  const char* arithmetic = arithmetic_name(plan.arithmetic);
  const std::string layers =
      plan.abreast > 1 ? text(", %d layers abreast in %d parts", plan.abreast, plan.parts) : std::string();
  if (plan.shape.transport == Transport::kStream)
    return text("%s %s %s, %s per step, estimated %.0f us", cell, transport, arithmetic,
                plan.proj_size > 0 ? "two products and two pointwise kernels" : "one product and one pointwise kernel",
                plan.microseconds);
  const char* weight = plan.proj_size > 0 ? ", by the weight W_hh W_hr" : "";
  return text("%s %s %s, %d CTAs x %d units, %d tiles of %d rows, %lld bytes of shared memory%s%s, estimated %.0f us",
              cell, transport, arithmetic, plan.ctas_per_tile, units_per_cta(plan.shape, plan.arithmetic), plan.tiles,
              plan.shape.batch_rows(), static_cast<long long>(plan.smem_bytes), weight, layers.c_str(),
              plan.microseconds);
}

std::vector<std::string> rejected(const Plan& plan) {
  std::vector<std::string> reasons;
  for (const Transport transport : kResident) {
    const Misfit& misfit = plan.misfits[static_cast<size_t>(transport)];
    if (misfit.reason != Reason::kNone) reasons.push_back(misfit_text(transport, misfit));
  }
  return reasons;
}

std::string kernel_name(Arithmetic arithmetic, const KernelShape& shape) {
  return text("%s %s %s kernel %s", arithmetic_name(arithmetic), cell_name(shape.cell), pass_name(shape.pass),
              request_of(arithmetic, shape).c_str());
}

std::string request_of(Arithmetic arithmetic, const KernelShape& shape) {
  const char* transport = transport_name(shape.transport);
  if (shape.transport == Transport::kStream) return transport;
  return text("%s:%dx%dx%d", transport, units_per_cta(shape, arithmetic), shape.batch_rows(),
              k_capacity(shape, arithmetic));
}

const std::vector<Device>& known_devices() {
  // Published: SMs, shared memory per CTA, clocks, bandwidth. Estimated: resident clusters, which also depend on how
  // many SMs of a GPC are switched off; a running library asks the driver.
  static const std::vector<Device> devices{
      {"T4", 75, 40, 65536, true, 0, 0, 0, 0, 1590, 320},
      {"A100", 80, 108, 166912, true, 0, 0, 0, 0, 1410, 1555},
      {"A10", 86, 72, 101376, true, 0, 0, 0, 0, 1695, 600},
      {"L4", 89, 58, 101376, true, 0, 0, 0, 0, 2040, 300},
      {"H100", 90, 132, 232448, true, 66, 32, 16, 7, 1980, 3350},
      {"H200", 90, 132, 232448, true, 66, 32, 16, 7, 1980, 4800},
      {"B200", 100, 148, 232448, true, 74, 36, 16, 8, 1965, 8000},
      {"RTX 5090", 120, 170, 101376, true, 85, 42, 20, 0, 2407, 1792},
  };
  return devices;
}

}  // namespace fusedlstm::cuda
