// How much of a device a kernel of some shape takes for a problem, and how much there is.
//
// Plain C++.
#pragma once
#include "plan.h"

namespace fusedlstm::cuda {

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// K of the recurrent product: h forward, the gates' gradients backward, each gate padded to 16 bytes.
int64_t product_k(const Problem& p, Arithmetic arithmetic);

// CTAs that together hold W_hh once, and the tiles of the batch that each set of them works on.
int64_t ctas_per_tile(const KernelShape& shape, const Problem& p);
int64_t batch_tiles(const KernelShape& shape, const Problem& p);

// Members of an ensemble that one launch runs. Those of LOCAL and CLUSTER wait for nobody, so that any number can queue
// for the SMs; all CTAs of GRID and MESH must run at once, and projections are products of one member.
int members_at_once(const KernelShape& shape, const Problem& p, const Device& d);

// Dynamic shared memory that a launch asks for, of each CTA: what the kernel uses, and where CTAs wait for each other
// more than half of what an SM has. Two of them would take turns on an SM that kernels of few registers have room on,
// and the model counts on one SM for each.
int64_t requested_smem_bytes(const KernelShape& shape, Arithmetic arithmetic, const Device& d);

// Clusters of so many CTAs that the device runs at once.
int resident_clusters(const Device& d, int64_t size);

// Layers whose recurrences, each a launch of its own, the device runs at once. Where those of GRID or MESH are more,
// some of their CTAs could wait on the SMs for others that find none.
int layers_at_once(const KernelShape& shape, const Problem& p, const Device& d);

}  // namespace fusedlstm::cuda
