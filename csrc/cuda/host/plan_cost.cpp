#include "plan_cost.h"

#include <algorithm>

#include "cost.h"
#include "kernel_shapes.h"
#include "plan_room.h"

namespace fusedlstm::cuda {

namespace {

// Multiply-adds per cycle and SM of products over whole matrices.
double product_rate(Arithmetic arithmetic, const Costs& cost) {
  switch (arithmetic) {
    case Arithmetic::kFloat64:
      return cost.rate_float64;
    case Arithmetic::kFloat32:
      return cost.rate_float32;
    case Arithmetic::kTf32:
      return cost.rate_tf32;
    default:
      return cost.rate_16_bit;
  }
}

// Multiply-adds of products over whole matrices, on so many SMs.
double product_microseconds(double multiply_adds, const Problem& p, const Device& d, int sms) {
  return multiply_adds / (product_rate(arithmetic_of(p), costs_of(d.compute_capability)) * sms * d.clock_mhz);
}

// What comes before and after the recurrence of what is projected (hidden_recurrence.h), in one direction: the
// effective weight, and products over all steps.
double projection_microseconds(const Problem& p, const Device& d) {
  constexpr int kLaunches = 7;
  const double P = static_cast<double>(p.proj_size), H = static_cast<double>(p.H), gates = sizes_of(p.cell).gates * H;
  const double rows = static_cast<double>(p.T * p.B), bytes = product_bytes(arithmetic_of(p));
  const bool is_forward = p.pass == Pass::kForward;
  const double of_rows = is_forward ? P * H : P * H + gates * P;
  const double row_bytes = is_forward ? (P + H) * bytes : (3 * P + H + gates) * bytes + 2 * 4 * P;
  return kLaunches * costs_of(d.compute_capability).stream_step_us / 2 +
         product_microseconds(gates * P * H + rows * of_rows, p, d, d.sm_count) +
         rows * row_bytes / (d.memory_gb_per_s * 1e3);
}

}  // namespace

double resident_microseconds(const KernelShape& shape, const Problem& p, const Device& d) {
  const Costs& cost = costs_of(d.compute_capability);
  const Arithmetic arithmetic = arithmetic_of(p);
  const int64_t ctas = ctas_per_tile(shape, p);
  const bool ffma = arithmetic == Arithmetic::kFloat32, forward = p.pass == Pass::kForward;
  const double bytes = product_bytes(arithmetic), n = shape.batch_rows();
  const double units = units_per_cta(shape, arithmetic), pairs = units * n;
  const double k = static_cast<double>(shape.chunks()) * 64 / bytes, rows = shape.rows();
  const double mma_k = bytes == 2 ? 16 : 8;
  const double product =
      ffma ? rows * k * n * cost.ffma : std::max(rows / 16 * k / mma_k * n / 8 * cost.mma / 4, cost.mma_latency * 4);
  const double pointwise = (arithmetic == Arithmetic::kBFloat16 ? cost.activations_fast : cost.activations) +
                           pairs * cost.pair_issue * (forward ? 1 : 1.3);
  // The tensor cores wait for weights from shared memory, and those for each other; or for the operand, which every
  // warp reads its part of K of.
  const double weights = shape.shared_weight_bytes() / cost.shared_bytes * n / 8;
  const double operand = KernelShape::kWarps * shape.chunks_per_warp * 64 * n / cost.shared_bytes;
  // Sums that the cells take from shared memory, each from so many warps, or CTAs.
  const int sources = transport_shape(shape, arithmetic).sources;
  const double partials = sources == 0 ? 0
                                       : cost.shared_store + cost.barrier + cost.shared_load +
                                             pairs * sums_of_unit(shape) * 4 * sources * 2 / cost.shared_bytes;
  double cycles = cost.slack + cost.shared_load + std::max({product, weights, operand}) + cost.mma_latency + partials +
                  pointwise + cost.shared_store;

  const int64_t abreast = members_at_once(shape, p, d);  // the more there are, the less is gained by small tiles
  const int64_t tiles = batch_tiles(shape, p) * p.D * abreast;
  const double rows_in = std::min<double>(n, p.B), k_bytes = static_cast<double>(product_k(p, arithmetic)) * bytes;
  const double fetched = shape.transport == Transport::kMesh ? k_bytes / kMeshClusterSize : k_bytes;
  const double incoming = rows_in * (sends_sums(shape) ? static_cast<double>(p.H) * 4 : fetched);
  int64_t resident = d.sm_count;
  double us = cost.launch_us;
  switch (shape.transport) {
    case Transport::kBulk:
      cycles += cost.barrier;
      [[fallthrough]];
    case Transport::kCluster:
      cycles += cost.cluster_latency + incoming / cost.cluster_bytes;
      resident = resident_clusters(d, ctas);
      break;
    case Transport::kMesh:
      cycles += cost.cluster_latency + rows_in * units * sources * sums_of_unit(shape) * 4 / cost.cluster_bytes;
      [[fallthrough]];
    case Transport::kGrid:
      cycles += cost.grid_latency + incoming / cost.grid_bytes + (grid_rounds(shape) - 1) * cost.grid_round;
      if (shape.k_splits < KernelShape::kWarps) cycles += 2 * cost.barrier;  // what a warp fetches is not for it alone
      resident = tiles;
      us += static_cast<double>(exchanged_positions(p.T) * p.B * p.D * abreast) * k_bytes / cost.memset_bytes_per_us;
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
  if (p.proj_size > 0) us += p.D * projection_microseconds(p, d);
  return (us + std::max(compute, traffic / (d.memory_gb_per_s * 1e3))) * static_cast<double>(p.M / abreast);
}

double stream_microseconds(const Problem& p, const Device& d) {
  const Costs& cost = costs_of(d.compute_capability);
  const Arithmetic arithmetic = arithmetic_of(p);
  const double bytes = product_bytes(arithmetic), H = static_cast<double>(p.H), B = static_cast<double>(p.B);
  const double outer = p.proj_size > 0 ? static_cast<double>(p.proj_size) : H;
  const CellSizes cell = sizes_of(p.cell);
  const double weights = cell.gates * H * outer * bytes / (d.memory_gb_per_s * 1e3);
  const double product = product_microseconds(cell.gates * H * outer * B, p, d, d.sm_count);
  const double pointwise = B * H * (8 * (cell.gates + cell.carried) + bytes) / (d.memory_gb_per_s * 1e3);
  const double projection = p.proj_size > 0 ? cost.stream_step_us : 0;
  return static_cast<double>(p.T * p.D * p.M) *
         (std::max(weights, product) + pointwise + projection + cost.stream_step_us);
}

double layer_product_microseconds(const Problem& p, const Device& d, int sms) {
  const Arithmetic arithmetic = arithmetic_of(p);
  const double H = static_cast<double>(p.H), gates = sizes_of(p.cell).gates * H;
  const double rows = static_cast<double>(p.T * p.B);
  const double product = product_microseconds(rows * gates * H, p, d, sms);
  const double bytes =
      rows * (gates * (p.pass == Pass::kForward ? 4 : product_bytes(arithmetic)) + H * product_bytes(arithmetic));
  return std::max(product, bytes / (d.memory_gb_per_s * 1e3));
}

}  // namespace fusedlstm::cuda
