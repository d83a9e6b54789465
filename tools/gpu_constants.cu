// E1: cycles that the hardware takes for what the kernels do in a step. Prints one JSON object per line.
//
//   nvcc -std=c++20 -O3 --expt-relaxed-constexpr -arch=sm_90a -Icsrc tools/gpu_constants.cu -o gpu_constants
//
// The exchanges are those of csrc/cuda/device/transport_{cluster,grid}.cuh without the product between them: the same
// lanes send the same number of bytes to the same peers, by the same primitives, so that their time is what a step
// waits for. Each kernel counts the cycles of its first CTA over many steps. A peer that does not come ends the kernel
// soon; cycles are then -1, as they are where the device refuses a launch.
//
// Rows {what, ctas, bytes, cycles}: ctas of one cluster or grid, bytes that every CTA receives in a step.
//   cluster exchange        forward, 16-bit elements: 4 lanes send 64 contiguous bytes to one peer. Variants: 32-bit
//                           elements; with the stage in shared memory that vectors are gathered in; by bulk copies
//   cluster sums            backward: a warp sends 32 times 8 bytes to one peer. Variant: 32 times 16
//     ..., alone            one cluster
//     ..., GPU full         as many clusters as there is room for
//   grid exchange           through L2: words of ones are not written yet; or a barrier of all CTAs before they are
//   read resident clusters       cycles: how many run at once, one CTA on an SM most CTAs on one SM     cycles: how
//   many; bytes: shared memory of each
#include <cooperative_groups.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "gpu_probes.cuh"

namespace fusedlstm::cuda {
namespace {

namespace cg = cooperative_groups;

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kVectorBytes = 16, kChunkBytes = 64;
constexpr int kMostPeers = 16;
constexpr uint32_t kNotWritten = ~0u;

struct Run {
  int steps;
  long long* cycles;  // of the first CTA, for all steps; negative if a peer did not come
  uint32_t* sink;     // keeps results alive
};

// ---- clusters -----------------------------------------------------------------------------------------------------

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

// ---- the whole grid, through L2 -------------------------------------------------------------------------------------

// Waits until all CTAs have come here for the time-th time; counter: zero before the launch.
__device__ __forceinline__ void grid_barrier(Stopwatch& watch, unsigned* counter, int time) {
  block_sync();
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(counter, 1);
    watch.wait_until([&] { return *static_cast<volatile unsigned*>(counter) >= gridDim.x * time; });
    __threadfence();
  }
  block_sync();
}

// Every CTA publishes its share of `bytes`, at most a vector for each thread, and fetches all of them: [batch row][K],
// of which a warp fetches an eighth of K of all rows, 64 bytes of a row at a time, in rounds of up to 8 vectors of a
// lane. memory: `bytes` per step, all ones before the launch. kBarrier: read after a barrier of all CTAs, instead of
// again and again.
template <bool kBarrier>
__global__ void __launch_bounds__(kThreads, 1)
    grid_exchange_kernel(Run run, char* memory, unsigned* counter, int64_t bytes) {
  constexpr int kInFlight = 8;
  const int vectors = static_cast<int>(bytes) / gridDim.x / kVectorBytes, rows = std::min(vectors, 8);
  const int64_t pitch = bytes / rows;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4;
  const int chunks = static_cast<int>(pitch) / kWarps / kChunkBytes;
  const int64_t first = row * pitch + int64_t{warp} * chunks * kChunkBytes + lane % 4 * kVectorBytes;
  const int64_t published =
      threadIdx.x % rows * pitch + (int64_t{blockIdx.x} * (vectors / rows) + threadIdx.x / rows) * kVectorBytes;
  const SharedAddress arrival = shared_address(shared_memory()) + threadIdx.x * kVectorBytes;
  Stopwatch start;
  grid_barrier(start, counter, 1);
  Stopwatch watch;
  for (int s = 0; s < run.steps; ++s) {
    char* step = memory + s * bytes;
    if (threadIdx.x < vectors) store_relaxed128(step + published, Vec4{{1, 1, 1, 1}});
    if constexpr (kBarrier) grid_barrier(watch, counter, s + 2);
    for (int c = 0; c < chunks; c += kInFlight) {
      Vec4 v[kInFlight];
      bool again;
      do {
        bool is_missing = false;
#pragma unroll
        for (int i = 0; i < kInFlight; ++i) {
          v[i] = Vec4{};
          if (row < rows && c + i < chunks) v[i] = load_relaxed128(step + first + (c + i) * kChunkBytes);
        }
#pragma unroll
        for (int i = 0; i < kInFlight; ++i)
          for (int j = 0; j < 4; ++j) is_missing |= v[i].w[j] == kNotWritten;
        again = warp_any(is_missing && !watch.is_late());
      } while (again);
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) store_shared128(arrival, v[i]);
    }
    block_sync();
  }
  watch.stop(run.cycles);
  run.sink[blockIdx.x * kThreads + threadIdx.x] = load_shared32(arrival);
}

// Where the CTAs of a launch run. Each stays until the last has surely started.
__global__ void __launch_bounds__(kThreads) placement_kernel(Run run) {
  const long long start = clock64();
  if (threadIdx.x == 0) run.sink[blockIdx.x] = sm_id();
  if (threadIdx.x == 0 && blockIdx.x == 0) *run.cycles = 0;
  while (clock64() - start < 200'000) {
  }
}

// ---- tensor cores -------------------------------------------------------------------------------------------------

// kSums independent sums a warp; weights in registers, as the kernels have them.
template <bool kTf32, int kSums>
__global__ void __launch_bounds__(kThreads, 1) mma_kernel(Run run) {
  if constexpr (kArch >= 800) {
    constexpr int kWeights = 16;
    uint32_t weight[kWeights][4];
    for (int i = 0; i < kWeights; ++i)
      for (int j = 0; j < 4; ++j) weight[i][j] = run.sink[(i * 4 + j) * kThreads + threadIdx.x];
    const uint32_t b0 = run.sink[threadIdx.x], b1 = run.sink[kThreads + threadIdx.x];
    float sum[kSums][4] = {};
    Stopwatch watch;
    for (int s = 0; s < run.steps; s += kWeights)
#pragma unroll
      for (int i = 0; i < kWeights; ++i) {
        const auto& a = weight[i];
        if constexpr (kTf32)
          mma_tf32(sum[i % kSums], a[0], a[1], a[2], a[3], b0, b1);
        else
          mma_bf16(sum[i % kSums], a[0], a[1], a[2], a[3], b0, b1);
      }
    watch.stop(run.cycles);
    for (int i = 0; i < kSums; ++i)
      for (int j = 0; j < 4; ++j) run.sink[(i * 4 + j) * kThreads + threadIdx.x] = float_bits(sum[i][j]);
  }
}

// ---- host ---------------------------------------------------------------------------------------------------------

void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "gpu_constants: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

template <class T>
T* allocate(size_t bytes) {
  void* p = nullptr;
  require(cudaMalloc(&p, bytes), "memory");
  require(cudaMemset(p, 0x3C, bytes), "memory");
  return static_cast<T*>(p);
}

constexpr int64_t kMemoryBytes = int64_t{128} << 20;
Run run;
char* memory;
unsigned* counter;

void print_row(const std::string& what, int ctas, int64_t bytes, double cycles) {
  std::printf("{\"what\": \"%s\", \"ctas\": %d, \"bytes\": %lld, \"cycles\": %.1f}\n", what.c_str(), ctas,
              static_cast<long long>(bytes), cycles);
  std::fflush(stdout);
}

// Cycles per step, the best of a few launches; -1 where the device refuses the launch, or a peer did not come.
template <class... Params, class... Args>
double cycles_per_step(void (*kernel)(Params...), const LaunchConfig& config, int steps, Args... args) {
  constexpr int kLaunches = 3;
  double best = -1;
  run.steps = steps;
  for (int i = 0; i < kLaunches; ++i) {
    require(cudaMemset(memory, 0xFF, kMemoryBytes), "memory");
    require(cudaMemset(counter, 0, sizeof *counter), "memory");
    if (launch(kernel, config, nullptr, run, args...) != cudaSuccess) return -1;
    require(cudaDeviceSynchronize(), "kernel");
    long long cycles = 0;
    require(cudaMemcpy(&cycles, run.cycles, sizeof cycles, cudaMemcpyDeviceToHost), "result");
    if (cycles < 0) return -1;
    const double each = static_cast<double>(cycles) / steps;
    if (best < 0 || each < best) best = each;
  }
  return best;
}

struct ClusterPattern {
  const char* what;
  void (*kernel)(Run, int bytes);
  int warp_bytes;  // that a warp sends to a peer at a time: a CTA's share is a multiple of it
  int stages;      // of a share each
};
constexpr ClusterPattern kClusterPatterns[] = {
    {"cluster exchange", cluster_exchange_kernel<4, false>, 64, 0},
    {"cluster exchange, 32 bit", cluster_exchange_kernel<8, false>, 128, 0},
    {"cluster exchange, staged", cluster_exchange_kernel<4, true>, 64, 2},
    {"cluster exchange, bulk copies", bulk_exchange_kernel, 64, 2},
    {"cluster sums", cluster_sums_kernel<8>, 256, 0},
    {"cluster sums, 16 bytes", cluster_sums_kernel<16>, 512, 0},
};

int resident_clusters(int ctas, int smem_bytes) {
  constexpr auto kKernel = kClusterPatterns[0].kernel;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(ctas), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(ctas);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = smem_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  require(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, smem_bytes), "shared memory");
  require(cudaFuncSetAttribute(kKernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "clusters");
  const cudaError_t error = cudaOccupancyMaxActiveClusters(&clusters, kKernel, &config);
  (void)cudaGetLastError();
  return error == cudaSuccess ? clusters : 0;
}

LaunchConfig config_of(int grid, int cluster, size_t smem_bytes, bool cooperative = false) {
  return {dim3(grid), dim3(kThreads), dim3(cluster), smem_bytes, cooperative};
}

// smem_bytes: all that a CTA can have. With more than half of it, each CTA has an SM of its own.
void measure_exchanges(const ClusterPattern& pattern, int ctas, int clusters, int smem_bytes) {
  constexpr int kSteps = 1000;
  for (const int number : {1, clusters})
    for (int bytes = 1 << 10; bytes <= 64 << 10; bytes *= 2) {
      const int share = bytes / ctas, needed = Arrivals::kHeaderBytes + 2 * bytes + pattern.stages * share;
      if (share % pattern.warp_bytes != 0) continue;
      const LaunchConfig config = config_of(ctas * number, ctas, std::max(needed, smem_bytes / 2 + 1024));
      const std::string what = std::string(pattern.what) + (number == 1 ? ", alone" : ", GPU full");
      print_row(what, ctas, bytes, cycles_per_step(pattern.kernel, config, kSteps, bytes));
    }
}

void measure_placement(const std::string& what, int ctas, const LaunchConfig& config) {
  double most = -1;
  if (cycles_per_step(placement_kernel, config, 1) >= 0) {
    std::vector<uint32_t> sm(config.grid.x);
    require(cudaMemcpy(sm.data(), run.sink, sm.size() * sizeof sm[0], cudaMemcpyDeviceToHost), "result");
    for (const uint32_t id : sm) most = std::max(most, static_cast<double>(std::count(sm.begin(), sm.end(), id)));
  }
  print_row("most CTAs on one SM, " + what, ctas, static_cast<int64_t>(config.smem_bytes), most);
}

constexpr int kPlacementBytes[] = {16 << 10, 100 << 10};  // many CTAs to an SM, or two

void measure_clusters(int smem_bytes) {
  for (int ctas = 2; ctas <= kMostPeers; ++ctas)
    print_row("resident clusters", ctas, 0, resident_clusters(ctas, smem_bytes));
  for (const int ctas : {2, 4, 8, 16}) {
    const int clusters = resident_clusters(ctas, smem_bytes);
    if (clusters == 0) continue;
    for (const int bytes : kPlacementBytes) {
      measure_placement("cluster alone", ctas, config_of(ctas, ctas, bytes));
      measure_placement("clusters on the GPU", ctas, config_of(ctas * clusters, ctas, bytes));
    }
    constexpr int kSteps = 1000;
    const LaunchConfig config = config_of(ctas, ctas, 0);
    print_row("cluster barrier", ctas, 0, cycles_per_step(cluster_barrier_kernel, config, kSteps, false));
    print_row("cluster barrier with stores", ctas, 0, cycles_per_step(cluster_barrier_kernel, config, kSteps, true));
    for (const ClusterPattern& pattern : kClusterPatterns) measure_exchanges(pattern, ctas, clusters, smem_bytes);
  }
  constexpr int kRemoteBytes = kRemoteLoads * kThreads * kVectorBytes, kSteps = 1000;
  const LaunchConfig pair = config_of(2, 2, kRemoteBytes);
  print_row("remote load latency", 2, 4, cycles_per_step(remote_load_latency_kernel, pair, kSteps));
  print_row("remote load bandwidth", 2, kRemoteBytes, cycles_per_step(remote_load_bandwidth_kernel, pair, kSteps));
}

void measure_grid(int multiprocessors) {
  for (const int ctas : {32, 64, 128}) {
    if (ctas > multiprocessors) continue;
    for (const int bytes : kPlacementBytes) measure_placement("grid", ctas, config_of(ctas, 1, bytes, true));
    for (int64_t bytes = 2 << 10; bytes <= 128 << 10; bytes *= 4) {
      const int steps = static_cast<int>(std::min<int64_t>(1000, kMemoryBytes / bytes));
      const LaunchConfig config = config_of(ctas, 1, kThreads * kVectorBytes, true);
      const auto print = [&](const char* what, auto kernel) {
        print_row(what, ctas, bytes, cycles_per_step(kernel, config, steps, memory, counter, bytes));
      };
      print("grid exchange, sentinel", grid_exchange_kernel<false>);
      print("grid exchange, barrier", grid_exchange_kernel<true>);
    }
  }
}

template <bool kTf32, int kSums>
void measure_mma() {
  constexpr int kSteps = 16000, kWarpsPerQuarter = kThreads / 32 / 4;
  const std::string what = std::string(kTf32 ? "mma tf32" : "mma bf16") + ", " + std::to_string(kSums) + " sums";
  print_row(what, 1, 0, cycles_per_step(mma_kernel<kTf32, kSums>, config_of(1, 1, 0), kSteps) / kWarpsPerQuarter);
}

void measure_all() {
  cudaDeviceProp device;
  require(cudaGetDeviceProperties(&device, 0), "device");
  memory = allocate<char>(kMemoryBytes);
  counter = allocate<unsigned>(sizeof *counter);
  run = {0, allocate<long long>(sizeof(long long)), allocate<uint32_t>(size_t{8} << 20)};
  if (device.major >= 9) measure_clusters(static_cast<int>(device.sharedMemPerBlockOptin));
  if (device.cooperativeLaunch) measure_grid(device.multiProcessorCount);
  if (device.major >= 8) {
    measure_mma<false, 1>();
    measure_mma<false, 2>();
    measure_mma<false, 4>();
    measure_mma<true, 1>();
    measure_mma<true, 2>();
    measure_mma<true, 4>();
  }
}

}  // namespace
}  // namespace fusedlstm::cuda

int main() {
  fusedlstm::cuda::measure_all();
}
