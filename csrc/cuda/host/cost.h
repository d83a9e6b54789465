// What the planner's model takes for the cycles and rates of a GPU, one value for each architecture.
//
// Plain C++. tools/gpu_visit/findings.py reads the values of kSm90 here.
#pragma once

namespace fusedlstm::cuda {

// Cycles and rates of one SM; clock, number of SMs and memory are the device's.
struct Costs {
  double mma;  // one m16n8k16 (16-bit) or m16n8k8 (TF32), per quarter of the SM
  double mma_latency;
  double ffma;  // per multiply-add
  double barrier;
  double shared_load;
  double shared_store;
  double shared_bytes;      // per cycle
  double activations_fast;  // chain of one cell's activations, bfloat16
  double activations;
  double pair_issue;       // instructions of one (unit, batch row) pair
  double cluster_latency;  // from store_async to the waiters' first load
  double cluster_bytes;    // per cycle into one SM
  double grid_latency;     // from a store to a poll that sees it, through L2
  double grid_bytes;       // per cycle into one SM
  double grid_round;       // a round trip to L2 where the data is there already
  double slack;
  double launch_us;  // launch, and loading the weights
  double memset_bytes_per_us;
  double stream_step_us;  // two launches and what they wait for
  // Multiply-adds per cycle that the products of STREAM achieve.
  double rate_16_bit;
  double rate_tf32;
  double rate_float32;
  double rate_float64;
  // How many times as long as the model says the kernels of a transport may take, as far as is known.
  double doubt_stream;  // which the host binds
  double doubt_local;
  double doubt_cluster;
  double doubt_grid;
  // cuDNN's recurrence, microseconds of a step forward, by its algorithm: products and pointwise kernels, where those
  // take no longer; kernels for small hidden sizes; kernels that keep weights of 16 bits. What comes to it for each
  // hidden unit, and for each element of the batch's states. Backward is so many times as long.
  double cudnn_standard_us;
  double cudnn_small_us;
  double cudnn_small_element_us;
  double cudnn_resident_us;
  double cudnn_resident_unit_us;
  double cudnn_resident_element_us;
  double cudnn_standard_backward;
  double cudnn_resident_backward;
  double cudnn_weight_us;  // to copy a weight to where cuDNN reads it, beside its bytes
};

// Estimated from published measurements, until tools/gpu_check has measured them.
inline constexpr Costs kSm90{
    .mma = 6.5,
    .mma_latency = 33,
    .ffma = 1.25 / 128,
    .barrier = 45,
    .shared_load = 33,
    .shared_store = 30,
    .shared_bytes = 128,
    .activations_fast = 130,
    .activations = 220,
    .pair_issue = 45.0 / 128,
    .cluster_latency = 350,
    .cluster_bytes = 14,
    .grid_latency = 850,
    .grid_bytes = 20,
    .grid_round = 350,
    .slack = 80,
    .launch_us = 6,
    .memset_bytes_per_us = 3e6,
    .stream_step_us = 4.5,
    .rate_16_bit = 1200,
    .rate_tf32 = 600,
    .rate_float32 = 90,
    .rate_float64 = 40,
    .doubt_stream = 1.5,
    .doubt_local = 1.5,
    .doubt_cluster = 1.7,
    .doubt_grid = 2.5,
    .cudnn_standard_us = 5,
    .cudnn_small_us = 1.4,
    .cudnn_small_element_us = 1.1e-5,
    .cudnn_resident_us = 1.4,
    .cudnn_resident_unit_us = 3.5e-4,
    .cudnn_resident_element_us = 3e-5,
    .cudnn_standard_backward = 1.4,
    .cudnn_resident_backward = 1.7,
    .cudnn_weight_us = 3,
};
// Nothing is known of these yet that is not the device's.
inline constexpr Costs kSm75 = kSm90;
inline constexpr Costs kSm80 = kSm90;
inline constexpr Costs kSm100 = kSm90;
inline constexpr Costs kSm120 = kSm90;

// Of a compute capability, times ten: those of the newest architecture that is not newer; of kSm75 before it.
constexpr const Costs& costs_of(int compute_capability) {
  if (compute_capability >= 120) return kSm120;
  if (compute_capability >= 100) return kSm100;
  if (compute_capability >= 90) return kSm90;
  if (compute_capability >= 80) return kSm80;
  return kSm75;
}

}  // namespace fusedlstm::cuda
