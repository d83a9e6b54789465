#include "plan.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <optional>
#include <stdexcept>

#include "cost.h"
#include "kernel_shapes.h"

namespace fusedlstm::cuda {
namespace {

constexpr std::array kResident{Transport::kLocal, Transport::kCluster, Transport::kGrid};

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// K of the recurrent product: h forward, the gates' gradients backward, each gate padded to 16 bytes.
int64_t product_k(const Problem& p, Arithmetic arithmetic) {
  const int64_t vector = 16 / product_bytes(arithmetic);
  return ceil_div(p.H, vector) * vector * (p.pass == Pass::kForward ? 1 : sizes_of(p.cell).gates);
}

int64_t ctas_per_tile(const KernelShape& shape, const Problem& p) {
  return ceil_div(p.H, units_per_cta(shape, arithmetic_of(p)));
}
int64_t batch_tiles(const KernelShape& shape, const Problem& p) {
  return ceil_div(p.B, shape.batch_rows());
}

// Members of an ensemble that one launch runs. Those of LOCAL and CLUSTER wait for nobody, so that any number can queue
// for the SMs; all CTAs of GRID must run at once.
int members_at_once(const KernelShape& shape, const Problem& p, const Device& d) {
  const int64_t ctas = ctas_per_tile(shape, p) * batch_tiles(shape, p) * p.D * p.M;
  return shape.transport == Transport::kGrid && ctas > d.sm_count ? 1 : p.M;
}

int resident_clusters(const Device& d, int64_t size) {
  if (size <= 2) return d.max_clusters_of_2;
  if (size <= 4) return d.max_clusters_of_4;
  if (size <= 8) return d.max_clusters_of_8;
  return d.max_clusters_of_16;
}

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
  if (p.proj_size > 0) return {Reason::kProjection, {p.proj_size}};
  const int needed = needed_capability(transport, arithmetic);
  if (d.compute_capability < needed) return {Reason::kCapability, {needed, d.compute_capability}};
  if (transport == Transport::kGrid) {
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
  if (bytes > d.smem_bytes) return {Reason::kSharedMemory, {d.smem_bytes, bytes}};
  for (const RefusedKernel& refused : d.refused)
    if (refused.is_of(arithmetic, shape, ctas)) return {Reason::kRefused};
  switch (shape.transport) {
    case Transport::kLocal:
      if (ctas > 1) return {Reason::kUnits, {units, p.H}};
      break;
    case Transport::kCluster:
      if (ctas < 2) return {Reason::kClusterTooSmall, {units}};
      if (ctas > kMaxClusterSize) return {Reason::kClusterTooLarge, {kMaxClusterSize, ctas}};
      if (resident_clusters(d, ctas) == 0) return {Reason::kNoRoomForClusters, {ctas}};
      break;
    case Transport::kGrid:  // all CTAs must run at once, since they wait for each other
      if (all > d.sm_count) return {Reason::kMoreCtasThanSms, {d.sm_count, all}};
      break;
    case Transport::kStream:
      break;
  }
  return {};
}

// ---- what it costs ------------------------------------------------------------------------------------------------

double resident_microseconds(const KernelShape& shape, const Problem& p, const Device& d) {
  const Costs& cost = costs_of(d.compute_capability);
  const Arithmetic arithmetic = arithmetic_of(p);
  const int64_t ctas = ctas_per_tile(shape, p);
  const bool ffma = arithmetic == Arithmetic::kFloat32, forward = p.pass == Pass::kForward;
  const double bytes = product_bytes(arithmetic), n = shape.batch_rows(), pairs = units_per_cta(shape, arithmetic) * n;
  const double k = static_cast<double>(shape.chunks()) * 64 / bytes, rows = shape.rows();
  const double mma_k = bytes == 2 ? 16 : 8;
  const double product =
      ffma ? rows * k * n * cost.ffma : std::max(rows / 16 * k / mma_k * n / 8 * cost.mma / 4, cost.mma_latency * 4);
  const double pointwise = (arithmetic == Arithmetic::kBFloat16 ? cost.activations_fast : cost.activations) +
                           pairs * cost.pair_issue * (forward ? 1 : 1.3);
  // The tensor cores wait for weights from shared memory, and those for each other.
  const double weights = shape.shared_weight_bytes() / cost.shared_bytes * n / 8;
  // Sums that the cells take from shared memory, each from so many warps, or CTAs.
  const int sources = transport_shape(shape, arithmetic).sources;
  const double partials = sources == 0 ? 0
                                       : cost.shared_store + cost.barrier + cost.shared_load +
                                             pairs * sums_of_unit(shape) * 4 * sources * 2 / cost.shared_bytes;
  double cycles = cost.slack + cost.shared_load + std::max(product, weights) + cost.mma_latency + partials + pointwise +
                  cost.shared_store;

  const int64_t abreast = members_at_once(shape, p, d);  // the more there are, the less is gained by small tiles
  const int64_t tiles = batch_tiles(shape, p) * p.D * abreast;
  const double incoming =
      std::min<double>(n, p.B) *
      (sends_sums(shape) ? static_cast<double>(p.H) * 4 : static_cast<double>(product_k(p, arithmetic)) * bytes);
  int64_t resident = d.sm_count;
  double us = cost.launch_us;
  switch (shape.transport) {
    case Transport::kCluster:
      cycles += cost.cluster_latency + incoming / cost.cluster_bytes;
      resident = resident_clusters(d, ctas);
      break;
    case Transport::kGrid:
      cycles += cost.grid_latency + incoming / cost.grid_bytes + (grid_rounds(shape) - 1) * cost.grid_round;
      resident = tiles;
      us += static_cast<double>(exchanged_positions(p.T) * p.B * p.D * abreast * product_k(p, arithmetic)) * bytes /
            cost.memset_bytes_per_us;
      break;
    default:
      cycles += cost.barrier;
      break;
  }
  const double waves = static_cast<double>(ceil_div(tiles, resident));
  const double compute = waves * static_cast<double>(p.T) * cycles / d.clock_mhz;
  const CellSizes cell = sizes_of(p.cell);
  const int read = cell.saved + cell.takes_h + cell.reads_h, written = cell.gates * (cell.apart() > 0 ? 2 : 1);
  const double traffic = static_cast<double>(p.T * p.D * abreast * p.B * p.H) *
                         (forward ? 4 * cell.gates : (read + written + 1) * bytes + 8 * cell.carried);
  return (us + std::max(compute, traffic / (d.memory_gb_per_s * 1e3))) * static_cast<double>(p.M / abreast);
}

double stream_microseconds(const Problem& p, const Device& d) {
  const Costs& cost = costs_of(d.compute_capability);
  const Arithmetic arithmetic = arithmetic_of(p);
  const double bytes = product_bytes(arithmetic), H = static_cast<double>(p.H), B = static_cast<double>(p.B);
  const double outer = p.proj_size > 0 ? static_cast<double>(p.proj_size) : H;
  const double rate = arithmetic == Arithmetic::kFloat64   ? cost.rate_float64
                      : arithmetic == Arithmetic::kFloat32 ? cost.rate_float32
                      : arithmetic == Arithmetic::kTf32    ? cost.rate_tf32
                                                           : cost.rate_16_bit;
  const CellSizes cell = sizes_of(p.cell);
  const double weights = cell.gates * H * outer * bytes / (d.memory_gb_per_s * 1e3);
  const double product = cell.gates * H * outer * B / (rate * d.sm_count * d.clock_mhz);
  const double pointwise = B * H * (8 * (cell.gates + cell.carried) + bytes) / (d.memory_gb_per_s * 1e3);
  const double projection = p.proj_size > 0 ? cost.stream_step_us : 0;
  return static_cast<double>(p.T * p.D * p.M) *
         (std::max(weights, product) + pointwise + projection + cost.stream_step_us);
}

// ---- choosing -----------------------------------------------------------------------------------------------------

struct Request {
  std::optional<Transport> transport;
  int units = 0, batch_rows = 0, k = 0;  // 0: any
};

Request parse_request(const std::string& request) {
  Request parsed;
  if (request.empty()) return parsed;
  const size_t colon = request.find(':');
  const std::string name = request.substr(0, colon);
  if (name == transport_name(Transport::kStream)) parsed.transport = Transport::kStream;
  for (const Transport transport : kResident)
    if (name == transport_name(transport)) parsed.transport = transport;
  int used = 0;
  const bool sized = colon != std::string::npos;
  if (sized) {
    const char* sizes = request.c_str() + colon;
    std::sscanf(sizes, ":%dx%d%n", &parsed.units, &parsed.batch_rows, &used);
    if (std::sscanf(sizes, ":%*dx%*dx%d%n", &parsed.k, &used) == 1 && parsed.k <= 0) used = 0;
  }
  const bool size_ok = !sized || (colon + used == request.size() && parsed.units > 0 && parsed.batch_rows > 0 &&
                                  parsed.transport != Transport::kStream);
  if (!parsed.transport || !size_ok)
    throw std::invalid_argument(
        "FUSEDLSTM_PLAN: expected stream, local, cluster or grid, the last three perhaps with :UNITSxROWS or "
        ":UNITSxROWSxK, got '" +
        request + "'");
  return parsed;
}

Plan stream_plan(const Problem& p, const Device& d) {
  return {.arithmetic = arithmetic_of(p),
          .shape_index = -1,
          .shape = {p.cell, Transport::kStream, p.pass, 0, 0, 0, 0, 0},
          .ctas_per_tile = 0,
          .tiles = 0,
          .members = 1,
          .smem_bytes = 0,
          .microseconds = stream_microseconds(p, d)};
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
          .smem_bytes = smem_bytes(shape, arithmetic),
          .microseconds = resident_microseconds(shape, p, d)};
}

// Calls `take` with the plan of each kernel of one resident transport that fits and that the request allows; else
// returns why there is none.
template <class Take>
Misfit plans_of(Transport transport, const Request& request, const Problem& p, const Device& d, Take take) {
  const Arithmetic arithmetic = arithmetic_of(p);
  Misfit why_not = obstacle(transport, p, d);
  if (why_not.reason != Reason::kNone) return why_not;
  why_not = {request.k > 0 ? Reason::kNotCompiledForK : Reason::kNotCompiled,
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
      take(resident_plan(i, p, d));
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
  Plan best = stream_plan(problem, device);
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
  const Plan stream = stream_plan(problem, device);
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
  if (plan.shape.transport == Transport::kStream)
    return text("%s %s %s, one product and one pointwise kernel per step, estimated %.0f us", cell, transport,
                arithmetic, plan.microseconds);
  return text("%s %s %s, %d CTAs x %d units, %d tiles of %d rows, %lld bytes of shared memory, estimated %.0f us", cell,
              transport, arithmetic, plan.ctas_per_tile, units_per_cta(plan.shape, plan.arithmetic), plan.tiles,
              plan.shape.batch_rows(), static_cast<long long>(plan.smem_bytes), plan.microseconds);
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
  return text("%s %s %s kernel %s", arithmetic_name(arithmetic), cell_name(shape.cell),
              shape.pass == Pass::kForward ? "forward" : "backward", request_of(arithmetic, shape).c_str());
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
