// Exchanges between the CTAs of a cluster, through their shared memory.
#pragma once

#include <cooperative_groups.h>

#include "run.cuh"

namespace fusedlstm::cuda {

namespace cg = cooperative_groups;

constexpr int kMostPeers = 16;

// with_stores: every thread also has a store to global memory in flight, for which a release waits.
__global__ void __launch_bounds__(kThreads, 1) cluster_barrier_kernel(Run run, bool with_stores) {
  if constexpr (kArch >= 900) {
    cluster_sync();
    Stopwatch watch;
    for (int s = 0; s < run.steps; ++s) {
      if (with_stores) run.sink[(s % 8 * gridDim.x + blockIdx.x) * kThreads + threadIdx.x] = s;
      cluster_sync();
    }
    watch.stop(run.cycles);
  }
}

// Two buffers of `bytes`, filled in turns, each with an mbarrier that counts what has arrived.
class Arrivals {
 public:
  __device__ __forceinline__ explicit Arrivals(int bytes) : base_(shared_address(shared_memory())), bytes_(bytes) {
    if (threadIdx.x == 0) {
      for (int s = 0; s < 2; ++s) mbarrier_init(base_ + barrier(s), 1);
      mbarrier_init_fence();
      for (int s = 0; s < 2; ++s) mbarrier_arrive_expect(base_ + barrier(s), bytes);
    }
    cluster_sync();
  }
  static constexpr int kHeaderBytes = 128;

  // Of this CTA, or of a peer; and from there to what belongs to step s.
  __device__ __forceinline__ SharedAddress base() const { return base_; }
  __device__ __forceinline__ SharedAddress base_of(int peer) const { return map_cluster_address(base_, peer); }
  static __device__ __forceinline__ int barrier(int s) { return s % 2 * 8; }
  __device__ __forceinline__ int buffer(int s) const { return kHeaderBytes + s % 2 * bytes_; }
  __device__ __forceinline__ int stage(int s, int bytes) const { return kHeaderBytes + 2 * bytes_ + s % 2 * bytes; }

 private:
  SharedAddress base_;
  int bytes_;
};

// In every step send(s, arrivals), and then all that is sent to this CTA.
template <class Send>
__device__ __forceinline__ void exchange_in_cluster(const Run& run, int bytes, Send send) {
  const Arrivals arrivals(bytes);
  Stopwatch watch;
  for (int s = 0; s < run.steps; ++s) {
    const SharedAddress barrier = arrivals.base() + arrivals.barrier(s);
    send(s, arrivals);
    watch.wait_until([&] { return mbarrier_try_wait<Scope::kCluster>(barrier, s / 2 % 2); });
    if (threadIdx.x == 0 && s + 2 < run.steps && !watch.gave_up()) mbarrier_arrive_expect(barrier, bytes);
    block_sync();
  }
  watch.stop(run.cycles);
  cluster_sync();
}

// Every CTA sends its share of `bytes` to all of the cluster. A warp has 32 elements at a time, 16 or 32 bits each:
// they are kVectors vectors, which as many lanes send to one peer. kStaged: gathered in shared memory first.
template <int kVectors, bool kStaged>
__global__ void __launch_bounds__(kThreads, 1) cluster_exchange_kernel(Run run, int bytes) {
  if constexpr (kArch >= 900) {
    constexpr int kCopies = 32 / kVectors, kPeers = kMostPeers / kCopies;
    constexpr int kWarpBytes = kVectors * kVectorBytes, kChunks = kWarpBytes / kChunkBytes;
    const int ctas = cluster_size(), share = bytes / ctas, lane = threadIdx.x % 32, vector = lane % kVectors;
    const int mine = cluster_rank() * share + vector / 4 * (share / kChunks) + vector % 4 * kVectorBytes;
    exchange_in_cluster(run, bytes, [&](int s, const Arrivals& arrivals) {
      for (int n = threadIdx.x / 32; n < share / kWarpBytes; n += kWarps) {
        Vec4 v{{static_cast<uint32_t>(s), 0, 0, 0}};
        if constexpr (kStaged) {
          const SharedAddress stage = arrivals.base() + arrivals.stage(s, share) + n * kWarpBytes;
          store_shared16(stage + lane * 2, static_cast<uint16_t>(s));
          warp_sync();
          v = load_shared128(stage + vector * kVectorBytes);
        }
#pragma unroll
        for (int i = 0; i < kPeers; ++i) {
          const int rank = i * kCopies + lane / kVectors;
          if (rank >= ctas) continue;
          const SharedAddress peer = arrivals.base_of(rank);
          store_async128(peer + arrivals.buffer(s) + mine + n * kChunkBytes, v, peer + arrivals.barrier(s));
        }
      }
    });
  }
}

// The same by bulk copies: one for each peer, from the stage. A stage is free when its step + 1 has arrived, which
// peers send only after they have received that step.
__global__ void __launch_bounds__(kThreads, 1) bulk_exchange_kernel(Run run, int bytes) {
  if constexpr (kArch >= 900) {
    const int ctas = cluster_size(), share = bytes / ctas, mine = cluster_rank() * share;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    exchange_in_cluster(run, bytes, [&](int s, const Arrivals& arrivals) {
      const SharedAddress stage = arrivals.base() + arrivals.stage(s, share);
      for (int n = warp; n < share / kChunkBytes; n += kWarps)
        store_shared16(stage + n * kChunkBytes + lane * 2, static_cast<uint16_t>(s));
      bulk_copy_fence();
      block_sync();
      if (lane != 0) return;
      for (int rank = warp; rank < ctas; rank += kWarps) {
        const SharedAddress peer = arrivals.base_of(rank);
        bulk_copy(peer + arrivals.buffer(s) + mine, stage, share, peer + arrivals.barrier(s));
      }
    });
  }
}

// Every CTA has sums for all units, 8 batch rows each, and sends them to the CTAs that own the units: `bytes` in all. A
// lane sends kLaneBytes of one unit; the 32 lanes of a warp send to one owner, and each warp has neighbouring units.
// bytes, and the size of the cluster: powers of two.
template <int kLaneBytes>
__global__ void __launch_bounds__(kThreads, 1) cluster_sums_kernel(Run run, int bytes) {
  if constexpr (kArch >= 900) {
    constexpr int kParts = 32 / kLaneBytes, kUnits = 32 / kParts;  // of a unit's 32 bytes; in one store of a warp
    const int share = bytes / cluster_size(), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int mine = cluster_rank() * share + lane % kParts * (share / kParts) + lane / kParts * kLaneBytes;
    const int groups = bytes / (32 * kLaneBytes), of_owner = share / (32 * kLaneBytes);
    const int of_warp = (groups + kWarps - 1) / kWarps, log2_of_owner = __ffs(of_owner) - 1;
    exchange_in_cluster(run, bytes, [&](int s, const Arrivals& arrivals) {
      for (int group = warp * of_warp; group < std::min(groups, (warp + 1) * of_warp); ++group) {
        const SharedAddress peer = arrivals.base_of(group >> log2_of_owner);
        const SharedAddress to = peer + arrivals.buffer(s) + mine + (group & (of_owner - 1)) * kUnits * kLaneBytes;
        if constexpr (kLaneBytes == 8)
          store_async64(to, s, 0, peer + arrivals.barrier(s));
        else
          store_async128(to, Vec4{{static_cast<uint32_t>(s), 0, 0, 0}}, peer + arrivals.barrier(s));
      }
    });
  }
}

// The other CTA's variable in a cluster of two. Earlier architectures do not even declare clusters.
template <class T>
__device__ T* of_peer(T* mine) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  return cg::this_cluster().map_shared_rank(mine, cluster_rank() ^ 1);
#else
  return mine;
#endif
}

// One thread follows a chain of loads through a peer's shared memory: the way there and back.
__global__ void __launch_bounds__(kThreads, 1) remote_load_latency_kernel(Run run) {
  if constexpr (kArch >= 900) {
    auto* mine = reinterpret_cast<uint32_t*>(shared_memory());
    mine[threadIdx.x] = (threadIdx.x + 33) % kThreads;
    cluster_sync();
    const uint32_t* theirs = of_peer(mine);
    uint32_t at = 0;
    Stopwatch watch;
    if (threadIdx.x == 0)
      for (int s = 0; s < run.steps; ++s) at = theirs[at];
    watch.stop(run.cycles);
    run.sink[threadIdx.x] = at;
    cluster_sync();
  }
}

// All threads read the peer's shared memory, kRemoteLoads vectors each per step.
constexpr int kRemoteLoads = 8;
__global__ void __launch_bounds__(kThreads, 1) remote_load_bandwidth_kernel(Run run) {
  if constexpr (kArch >= 900) {
    auto* mine = reinterpret_cast<uint4*>(shared_memory());
    for (int i = 0; i < kRemoteLoads; ++i) mine[i * kThreads + threadIdx.x] = uint4{threadIdx.x, 0, 0, 0};
    cluster_sync();
    const uint4* theirs = of_peer(mine);
    uint32_t sum = 0;
    Stopwatch watch;
    for (int s = 0; s < run.steps; ++s) {
#pragma unroll
      for (int i = 0; i < kRemoteLoads; ++i) {
        const uint4 v = theirs[i * kThreads + threadIdx.x];
        sum += v.x + v.y + v.z + v.w;
      }
      warp_sync();  // the next step loads again
    }
    watch.stop(run.cycles);
    run.sink[threadIdx.x] = sum;
    cluster_sync();
  }
}

}  // namespace fusedlstm::cuda
