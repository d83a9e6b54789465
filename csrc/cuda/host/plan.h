// Which kernel runs a layer, and in which shape: a value that can be computed, printed, forced and tested without a
// GPU.
//
// Plain C++: neither torch nor CUDA. Also compiled into the Python module `_core`.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "cells/all.h"
#include "dtypes.h"
#include "plan_misfit.h"

namespace fusedlstm::cuda {

// How the state of a step reaches the threads that need it in the next one.
enum class Transport : uint8_t {
  kStream,   // one matrix product and one pointwise kernel per step: anything, anywhere
  kLocal,    // one CTA holds all of W_hh, for a tile of the batch; the state stays in its shared memory
  kCluster,  // the CTAs of a cluster share W_hh; the state is sent into each other's shared memory (sm_90 and later)
  kGrid,     // up to all SMs share W_hh; the state goes through global memory (cooperative launch)
  kBulk,     // as kCluster, but what goes to a peer goes in one piece; only where it is asked for
  kMesh,  // as kGrid, but clusters share the rows of W_hh, and the CTAs of one its columns, and so the state to fetch
          // of each step; sums are sent as by kCluster backward (cooperative launch of clusters, sm_90 and later)
};
inline constexpr int kTransports = 6;

// Whether the CTAs that share W_hh are a cluster.
constexpr bool is_in_cluster(Transport transport) {
  return transport == Transport::kCluster || transport == Transport::kBulk;
}

// Whether all CTAs of a launch wait for each other, through global memory, and so must run at once.
constexpr bool is_cooperative(Transport transport) {
  return transport == Transport::kGrid || transport == Transport::kMesh;
}

// The arithmetic of the recurrent product. Cell and sums are float for all but kFloat64.
enum class Arithmetic : uint8_t { kBFloat16, kFloat16, kTf32, kFloat32, kFloat64 };

enum class Pass : uint8_t { kForward, kBackward };

struct Problem {
  CellKind cell;
  int64_t T, B, H;
  int64_t proj_size;  // 0: none
  int D;              // directions
  int M;              // members of an ensemble
  Dtype dtype;
  bool allow_tf32;
  Pass pass;
  int L = 1;  // layers of a stack, each on top of the one before
  bool operator==(const Problem&) const = default;
};

inline constexpr int kMaxClusterSize = 16;
inline constexpr int kMeshClusterSize = 8;  // the largest that every device with clusters has

// The compile-time shape of a resident kernel; see recurrence.cuh, and transport_shape.h for what depends on the
// transport. The planner and the kernels' table share the list.
struct KernelShape {
  CellKind cell;
  Transport transport;
  Pass pass;
  int rows_per_lane;    // rows of the weight that a lane holds, in groups of 8 rows per warp
  int chunks_per_warp;  // 64-byte chunks of K that a warp holds
  int k_splits;         // warps that share one set of rows
  int batch_tiles;      // batch rows per CTA, in tiles of 8
  int shared_chunks;    // of chunks_per_warp, the last ones: their weights are in shared memory, not in registers

  // What a unit of a batch row takes from the product, and what it gives to the next one.
  constexpr int sums() const { return pass == Pass::kForward ? sizes_of(cell).gates : 1; }
  constexpr int operands() const { return pass == Pass::kForward ? 1 : sizes_of(cell).gates; }
  constexpr int batch_rows() const { return 8 * batch_tiles; }
  constexpr int chunks() const { return chunks_per_warp * k_splits; }
  constexpr int rows() const { return kWarps / k_splits * 8 * rows_per_lane; }  // of the weight, in one CTA
  constexpr int weight_words() const { return rows_per_lane * (chunks_per_warp - shared_chunks) * 4; }  // of a lane
  constexpr int shared_weight_bytes() const { return shared_chunks * rows_per_lane * kWarps * 32 * 16; }
  static constexpr int kWarps = 8;
  bool operator==(const KernelShape&) const = default;
};

// A kernel that a device does not launch, whatever its limits say.
struct RefusedKernel {
  Arithmetic arithmetic;
  KernelShape shape;
  int cluster_size;  // that is refused; 0: any
  bool operator==(const RefusedKernel&) const = default;
  // ctas: those that hold W_hh once.
  bool is_of(Arithmetic of, const KernelShape& kernel, int64_t ctas) const {
    return arithmetic == of && shape == kernel && (cluster_size == 0 || cluster_size == ctas);
  }
};

// What limits a launch. From cudaGetDeviceProperties and occupancy queries, or from known_devices().
struct Device {
  std::string name;
  int compute_capability;  // times ten: 90 for sm_90
  int sm_count;
  int64_t smem_bytes;  // of one CTA, at most
  bool cooperative_launch;
  int max_clusters_of_2, max_clusters_of_4, max_clusters_of_8, max_clusters_of_16;  // resident at once; 0: none
  double clock_mhz;
  double memory_gb_per_s;
  std::vector<RefusedKernel> refused{};  // what it turned out not to launch
  int code_capability = 0;               // that the code was compiled for which it runs; 0: its own

  int capability_of_code() const { return code_capability > 0 ? code_capability : compute_capability; }
};

struct Plan {
  Arithmetic arithmetic;
  int shape_index;      // of kKernelShapes (kernel_shapes.h); -1: STREAM, which has none
  KernelShape shape;    // that one; STREAM: of its cell and pass, all sizes are 0
  int ctas_per_tile;    // CTAs that together hold W_hh once
  int tiles;            // tiles of the batch, of each direction and member
  int members;          // that one launch runs: all of the ensemble, or 1
  int64_t smem_bytes;   // that a launch asks for, per CTA
  double microseconds;  // of the whole pass, by the model: an estimate to choose by, never a result. Of one layer it is
                        // the recurrence, of a stack all layers, with the products between them
  int64_t proj_size = 0;  // above 0: a resident kernel runs the recurrence of what is projected (hidden_recurrence.h)
  int abreast = 1;        // layers of a stack that run at the same time
  int parts = 1;          // of the steps, as equal as they can be; a layer is one behind the layer below
  std::array<Misfit, kTransports> misfits{};  // why a transport was not taken: kNone if it fits, or was not asked
};

// The cheapest plan that fits, by the model; STREAM always fits. `request` forces the choice, as FUSEDLSTM_PLAN does:
// empty, "stream", "local", "cluster", "grid", "mesh" or "bulk", or one of these but the first with units and batch
// rows per CTA, "grid:16x8", and the elements of K that it holds, "grid:16x8x2048". For stacks "/4x8" behind it, or
// alone, forces 4 layers abreast, or as many as there are and fit on the device together, in 8 parts, "/1x1" one after
// another: by the kernel that a layer has by itself. Throws std::invalid_argument with the reason if what is requested
// does not fit or does not exist.
Plan make_plan(const Problem& problem, const Device& device, const std::string& request = "");

// The plans that fit and need not be asked for, each of another kernel, the cheapest by the model first: STREAM, and at
// most `most` others.
std::vector<Plan> plans_that_fit(const Problem& problem, const Device& device, int most);

// One line: "lstm grid bfloat16, 64 CTAs x 16 units, 2 tiles of 8 rows, 38 KiB shared memory, estimated 612 us".
std::string to_string(const Plan& plan);

// Why the transports that do not fit were not taken, one sentence each: "cluster: expected sm_90 or later, got sm_80".
std::vector<std::string> rejected(const Plan& plan);

// What runs the steps in one line: "bfloat16 lstm forward kernel grid:16x8x1024"; the last word is request_of it.
std::string kernel_name(Arithmetic arithmetic, const KernelShape& shape);

// What make_plan has to be asked for to choose this kernel: "grid:16x8x1024", "stream".
std::string request_of(Arithmetic arithmetic, const KernelShape& shape);

Arithmetic arithmetic_of(const Problem& problem);
const char* transport_name(Transport transport);
const char* pass_name(Pass pass);
const char* arithmetic_name(Arithmetic arithmetic);
const char* cell_name(CellKind cell);

// Published limits of GPUs at hand for planning without one.
const std::vector<Device>& known_devices();

}  // namespace fusedlstm::cuda
