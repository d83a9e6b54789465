#include "plan_contenders.h"

#include <algorithm>
#include <array>
#include <cstdio>

#include "cost.h"

namespace fusedlstm::cuda {
namespace {

// Resident kernels that are worth being measured: what the model thinks the best, and its next.
constexpr int kMostResident = 3;

enum class CudnnAlgorithm : uint8_t { kStandard, kSmall, kResident };

// PyTorch's choice. CUDNN_RNN_ALGO_PERSIST_STATIC_SMALL_H and _PERSIST_STATIC are kSmall and kResident.
CudnnAlgorithm algorithm_of(const Problem& p, const CudnnCall& call) {
  if (p.proj_size > 0 || p.dtype == Dtype::kFloat64 || call.is_packed) return CudnnAlgorithm::kStandard;
  const bool is_forward = p.pass == Pass::kForward;
  const int64_t small = p.cell == CellKind::kRnn ? (is_forward ? 384 : 256) : (is_forward ? 192 : 128);
  // cuDNN itself has no such kernels for bfloat16, whatever it is asked for.
  if (p.dtype != Dtype::kBFloat16 && p.H <= small) return CudnnAlgorithm::kSmall;
  const bool fits = p.H <= 1024 && p.H % 128 == 0 && call.features % 128 == 0 && p.B % 8 == 0 && p.B <= 128;
  const bool is_for_cell = p.cell == CellKind::kLstm || (p.cell == CellKind::kRnn && (p.B < 96 || p.H < 896));
  if (p.dtype == Dtype::kFloat16 && call.layers == 1 && p.D == 1 && fits && is_for_cell)
    return CudnnAlgorithm::kResident;
  return CudnnAlgorithm::kStandard;
}

// Of one step of one layer and direction.
double cudnn_step_microseconds(const Problem& p, const Device& d, const CudnnCall& call) {
  const Costs& cost = costs_of(d.compute_capability);
  const bool is_forward = p.pass == Pass::kForward;
  const double H = static_cast<double>(p.H), elements = H * static_cast<double>(p.B);
  switch (algorithm_of(p, call)) {
    case CudnnAlgorithm::kSmall:
      return (cost.cudnn_small_us + cost.cudnn_small_element_us * elements) *
             (is_forward ? 1 : cost.cudnn_standard_backward);
    case CudnnAlgorithm::kResident:
      return (cost.cudnn_resident_us + cost.cudnn_resident_unit_us * H + cost.cudnn_resident_element_us * elements) *
             (is_forward ? 1 : cost.cudnn_resident_backward);
    case CudnnAlgorithm::kStandard:
      break;
  }
  // Its products and pointwise kernels are as long as STREAM's.
  const double launches = cost.stream_step_us * (p.proj_size > 0 ? 2 : 1);
  const double stream = make_plan(p, d, transport_name(Transport::kStream)).microseconds;
  const double work = stream / static_cast<double>(p.T * p.D * p.M) - launches;
  const double least = cost.cudnn_standard_us * (is_forward ? 1 : cost.cudnn_standard_backward);
  return std::max(least, work + cost.cudnn_standard_us / 2) + (p.proj_size > 0 ? cost.stream_step_us : 0);
}

// Each layer after the first, and the second direction, take half as long: cuDNN runs them beside each other, as far as
// the GPU has room.
double beside(double count) {
  return 1 + (count - 1) / 2;
}

std::string quoted(const std::string& plain) {  // names and sentences of the planner: nothing in them is to be escaped
  return '"' + plain + '"';
}

std::string number(double microseconds) {
  std::array<char, 32> buffer;
  std::snprintf(buffer.data(), buffer.size(), "%.1f", microseconds);
  return buffer.data();
}

}  // namespace

double cudnn_microseconds(const Problem& p, const Device& d, const CudnnCall& call) {
  const double recurrence =
      static_cast<double>(p.T) * cudnn_step_microseconds(p, d, call) * beside(p.D) * beside(call.layers);
  if (p.pass == Pass::kBackward) return recurrence;
  const CellSizes cell = sizes_of(p.cell);
  const double rows = static_cast<double>(cell.gates * p.H * p.D);
  const double outer = static_cast<double>(p.proj_size > 0 ? p.proj_size : p.H);
  const double columns = static_cast<double>(call.features) + outer * (call.layers + (call.layers - 1) * p.D);
  const double bytes = rows * columns * static_cast<double>(element_bytes(p.dtype));
  const Costs& cost = costs_of(d.compute_capability);
  return recurrence + 4.0 * call.layers * p.D * cost.cudnn_weight_us + 2 * bytes / (d.memory_gb_per_s * 1e3);
}

double doubted_microseconds(const Plan& plan, const Device& d) {
  const Costs& cost = costs_of(d.compute_capability);
  switch (plan.shape.transport) {
    case Transport::kLocal:
      return plan.microseconds * cost.doubt_local;
    case Transport::kCluster:
    case Transport::kBulk:
      return plan.microseconds * cost.doubt_cluster;
    case Transport::kGrid:
    case Transport::kMesh:
      return plan.microseconds * cost.doubt_grid;
    case Transport::kStream:
      break;
  }
  return plan.microseconds * cost.doubt_stream;
}

std::string contenders_json(const Problem& problem, const Device& device, const CudnnCall& call) {
  std::string json = "{\"plans\": [";
  for (const Plan& plan : plans_that_fit(problem, device, kMostResident)) {
    if (json.back() == '}') json += ", ";
    json += "{\"request\": " + quoted(request_of(plan.arithmetic, plan.shape)) +
            ", \"text\": " + quoted(to_string(plan)) + ", \"microseconds\": " + number(plan.microseconds) +
            ", \"doubted\": " + number(doubted_microseconds(plan, device)) + "}";
  }
  Problem all = problem;
  all.L = call.layers;
  return json + "], \"stack\": " + number(doubted_microseconds(make_plan(all, device), device)) +
         ", \"cudnn\": " + number(cudnn_microseconds(problem, device, call)) + "}";
}

}  // namespace fusedlstm::cuda
