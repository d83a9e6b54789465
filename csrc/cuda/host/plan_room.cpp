#include "plan_room.h"

#include <algorithm>

#include "kernel_shapes.h"

namespace fusedlstm::cuda {

int64_t product_k(const Problem& p, Arithmetic arithmetic) {
  const int64_t vector = 16 / product_bytes(arithmetic);
  return ceil_div(p.H, vector) * vector * (p.pass == Pass::kForward ? 1 : sizes_of(p.cell).gates);
}

int64_t ctas_per_tile(const KernelShape& shape, const Problem& p) {
  const int64_t ctas = ceil_div(p.H, units_per_cta(shape, arithmetic_of(p)));
  return shape.transport == Transport::kMesh ? ceil_div(ctas, kMeshClusterSize) * kMeshClusterSize : ctas;
}
int64_t batch_tiles(const KernelShape& shape, const Problem& p) {
  return ceil_div(p.B, shape.batch_rows());
}

int members_at_once(const KernelShape& shape, const Problem& p, const Device& d) {
  if (p.proj_size > 0) return 1;
  return is_cooperative(shape.transport) && layers_at_once(shape, p, d) < p.D * p.M ? 1 : p.M;
}

int64_t requested_smem_bytes(const KernelShape& shape, Arithmetic arithmetic, const Device& d) {
  const int64_t used = smem_bytes(shape, arithmetic);
  if (shape.transport == Transport::kLocal) return used;
  // An SM has at most 1 KiB more than a CTA may have, and takes as much of it for each CTA.
  constexpr int64_t kUnit = 128;
  return std::max(used, (d.smem_bytes / 2 / kUnit + 1) * kUnit);
}

int resident_clusters(const Device& d, int64_t size) {
  if (size <= 2) return d.max_clusters_of_2;
  if (size <= 4) return d.max_clusters_of_4;
  if (size <= 8) return d.max_clusters_of_8;
  return d.max_clusters_of_16;
}

int layers_at_once(const KernelShape& shape, const Problem& p, const Device& d) {
  const int64_t ctas = ctas_per_tile(shape, p), tiles = batch_tiles(shape, p);
  switch (shape.transport) {
    case Transport::kLocal:
      return static_cast<int>(d.sm_count / tiles);
    case Transport::kCluster:
    case Transport::kBulk:
      return static_cast<int>(resident_clusters(d, ctas) / tiles);
    case Transport::kGrid:
      return static_cast<int>(d.sm_count / (ctas * tiles));
    case Transport::kMesh:
      return static_cast<int>(resident_clusters(d, kMeshClusterSize) * kMeshClusterSize / (ctas * tiles));
    case Transport::kStream:
      break;
  }
  return 0;
}

}  // namespace fusedlstm::cuda
