// E1: cycles that the hardware takes for what the kernels do in a step. Prints one JSON object per line.
//
//   nvcc -std=c++20 -O3 --expt-relaxed-constexpr -arch=sm_90a -Icsrc tools/gpu_constants.cu -o gpu_constants
//
// The exchanges are those of csrc/cuda/exchange.cuh without the product between them, by the same primitives, so that
// their time is what a step waits for. Each kernel counts the cycles of its first CTA over many steps.
#include <cooperative_groups.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "cuda/primitives.cuh"

namespace fusedlstm::gpu {
namespace {

namespace cg = cooperative_groups;

constexpr int kThreads = 256;
constexpr int kVectorBytes = 16;
constexpr uint32_t kNotWritten = ~0u;

struct Run {
  int steps;
  long long* cycles;  // of the first CTA, for all steps
  uint32_t* sink;     // keeps results alive
};

class Stopwatch {
 public:
  __device__ explicit Stopwatch(const Run& run) : run_(run) {
    block_sync();
    start_ = clock64();
  }
  __device__ void stop() const {
    block_sync();
    if (threadIdx.x == 0 && blockIdx.x == 0) *run_.cycles = clock64() - start_;
  }

 private:
  const Run& run_;
  long long start_;
};

// ---- clusters -----------------------------------------------------------------------------------------------------

// with_stores: every thread also has a store to global memory in flight, for which a release waits.
__global__ void __launch_bounds__(kThreads, 1) cluster_barrier_kernel(Run run, bool with_stores) {
  if constexpr (kArch >= 900) {
    cluster_sync();
    const Stopwatch watch(run);
    for (int s = 0; s < run.steps; ++s) {
      if (with_stores) run.sink[(s % 8 * gridDim.x + blockIdx.x) * kThreads + threadIdx.x] = s;
      cluster_sync();
    }
    watch.stop();
  }
}

// Every CTA sends its share of `bytes` to all CTAs of the cluster and waits for all of them.
__global__ void __launch_bounds__(kThreads, 1) cluster_exchange_kernel(Run run, int bytes) {
  if constexpr (kArch >= 900) {
    const SharedAddress barriers = shared_address(shared_memory()), buffers = barriers + 128;
    const int ctas = cluster_size(), vectors = bytes / ctas / kVectorBytes;
    const int first = cluster_rank() * vectors * kVectorBytes;
    if (threadIdx.x == 0) {
      for (int i = 0; i < 2; ++i) mbarrier_init(barriers + 8 * i, 1);
      mbarrier_init_fence();
      for (int i = 0; i < 2; ++i) mbarrier_arrive_expect(barriers + 8 * i, bytes);
    }
    cluster_sync();
    const Stopwatch watch(run);
    for (int s = 0; s < run.steps; ++s) {
      const SharedAddress barrier = barriers + s % 2 * 8, buffer = buffers + s % 2 * bytes;
      for (int i = threadIdx.x; i < vectors * ctas; i += kThreads)
        store_async128(map_cluster_address(buffer + first + i / ctas * kVectorBytes, i % ctas),
                       Vec4{{static_cast<uint32_t>(s), 0, 0, 0}}, map_cluster_address(barrier, i % ctas));
      mbarrier_wait<Scope::kCluster>(barrier, s / 2 % 2);
      if (threadIdx.x == 0 && s + 2 < run.steps) mbarrier_arrive_expect(barrier, bytes);
      block_sync();
    }
    watch.stop();
    cluster_sync();
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
    const Stopwatch watch(run);
    if (threadIdx.x == 0)
      for (int s = 0; s < run.steps; ++s) at = theirs[at];
    watch.stop();
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
    const Stopwatch watch(run);
    for (int s = 0; s < run.steps; ++s) {
#pragma unroll
      for (int i = 0; i < kRemoteLoads; ++i) {
        const uint4 v = theirs[i * kThreads + threadIdx.x];
        sum += v.x + v.y + v.z + v.w;
      }
      warp_sync();  // the next step loads again
    }
    watch.stop();
    run.sink[threadIdx.x] = sum;
    cluster_sync();
  }
}

// ---- the whole grid, through L2 -------------------------------------------------------------------------------------

enum class GridExchange { kSentinel, kGridBarrier, kCounter };

// Every CTA publishes its share of `bytes` and fetches all of them. memory: `bytes` per step, all ones before the
// launch; counter: zero.
template <GridExchange kHow>
__global__ void __launch_bounds__(kThreads, 1)
    grid_exchange_kernel(Run run, char* memory, unsigned* counter, int64_t bytes) {
  const int ctas = gridDim.x, vectors = static_cast<int>(bytes) / ctas / kVectorBytes;
  uint32_t sum = 0;
  cg::this_grid().sync();
  const Stopwatch watch(run);
  for (int s = 0; s < run.steps; ++s) {
    char* step = memory + s * bytes;
    for (int i = threadIdx.x; i < vectors; i += kThreads)
      store_relaxed128(step + (static_cast<int64_t>(blockIdx.x) * vectors + i) * kVectorBytes, Vec4{{1, 1, 1, 1}});
    if constexpr (kHow == GridExchange::kGridBarrier) cg::this_grid().sync();
    if constexpr (kHow == GridExchange::kCounter) {
      block_sync();
      if (threadIdx.x == 0) {
        __threadfence();
        atomicAdd(counter, 1);
        while (*static_cast<volatile unsigned*>(counter) < static_cast<unsigned>((s + 1) * ctas)) {
        }
        __threadfence();
      }
      block_sync();
    }
    constexpr int kInFlight = 4;
    for (int first = threadIdx.x; first < vectors * ctas; first += kThreads * kInFlight) {
      Vec4 v[kInFlight];
      bool again;
      do {
        again = false;
#pragma unroll
        for (int i = 0; i < kInFlight; ++i) {
          const int at = first + i * kThreads;
          v[i] = Vec4{};
          if (at < vectors * ctas) v[i] = load_relaxed128(step + static_cast<int64_t>(at) * kVectorBytes);
          for (int j = 0; j < 4; ++j) again |= v[i].w[j] == kNotWritten;
        }
      } while (again);
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) sum += v[i].w[0];
    }
    block_sync();
  }
  watch.stop();
  run.sink[blockIdx.x * kThreads + threadIdx.x] = sum;
}

// ---- tensor cores
// -----------------------------------------------------------------------------------------------------

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
    const Stopwatch watch(run);
    for (int s = 0; s < run.steps; s += kWeights)
#pragma unroll
      for (int i = 0; i < kWeights; ++i) {
        const auto& a = weight[i];
        if constexpr (kTf32)
          mma_tf32(sum[i % kSums], a[0], a[1], a[2], a[3], b0, b1);
        else
          mma_bf16(sum[i % kSums], a[0], a[1], a[2], a[3], b0, b1);
      }
    watch.stop();
    for (int i = 0; i < kSums; ++i)
      for (int j = 0; j < 4; ++j) run.sink[(i * 4 + j) * kThreads + threadIdx.x] = float_bits(sum[i][j]);
  }
}

// ---- host
// -------------------------------------------------------------------------------------------------------------

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

// Cycles per step, the best of a few launches; negative where the device refuses the launch.
template <class... Params, class... Args>
double cycles_per_step(void (*kernel)(Params...), const LaunchConfig& config, int steps, Args... args) {
  constexpr int kLaunches = 4;
  double best = -1;
  run.steps = steps;
  for (int i = 0; i < kLaunches; ++i) {
    require(cudaMemset(memory, 0xFF, kMemoryBytes), "memory");
    require(cudaMemset(counter, 0, sizeof *counter), "memory");
    if (launch(kernel, config, nullptr, run, args...) != cudaSuccess) return -1;
    require(cudaDeviceSynchronize(), "kernel");
    long long cycles = 0;
    require(cudaMemcpy(&cycles, run.cycles, sizeof cycles, cudaMemcpyDeviceToHost), "result");
    const double each = static_cast<double>(cycles) / steps;
    if (best < 0 || each < best) best = each;
  }
  return best;
}

int resident_clusters(int ctas, int smem_bytes) {
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
  require(cudaFuncSetAttribute(cluster_exchange_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, smem_bytes),
          "shared memory");
  require(cudaFuncSetAttribute(cluster_exchange_kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "clusters");
  const cudaError_t error = cudaOccupancyMaxActiveClusters(&clusters, cluster_exchange_kernel, &config);
  (void)cudaGetLastError();
  return error == cudaSuccess ? clusters : 0;
}

LaunchConfig config_of(int grid, int cluster, size_t smem_bytes, bool cooperative = false) {
  return {dim3(grid), dim3(kThreads), dim3(cluster), smem_bytes, cooperative};
}

void measure_clusters(int smem_bytes) {
  constexpr int kSteps = 4000;
  for (const int ctas : {2, 4, 8, 16}) {
    const int clusters = resident_clusters(ctas, smem_bytes);
    print_row("resident clusters", ctas, 0, clusters);
    if (clusters == 0) continue;
    const LaunchConfig config = config_of(ctas, ctas, 0);
    print_row("cluster barrier", ctas, 0, cycles_per_step(cluster_barrier_kernel, config, kSteps, false));
    print_row("cluster barrier with stores", ctas, 0, cycles_per_step(cluster_barrier_kernel, config, kSteps, true));
    for (const int number : {1, clusters})
      for (int bytes = 1 << 10; bytes <= 64 << 10; bytes *= 2) {
        const LaunchConfig exchange = config_of(ctas * number, ctas, 128 + 2 * bytes);
        const std::string what = number == 1 ? "cluster exchange, alone" : "cluster exchange, GPU full";
        print_row(what, ctas, bytes, cycles_per_step(cluster_exchange_kernel, exchange, kSteps, bytes));
      }
  }
  constexpr int kRemoteBytes = kRemoteLoads * kThreads * kVectorBytes;
  const LaunchConfig pair = config_of(2, 2, kRemoteBytes);
  print_row("remote load latency", 2, 4, cycles_per_step(remote_load_latency_kernel, pair, kSteps));
  print_row("remote load bandwidth", 2, kRemoteBytes, cycles_per_step(remote_load_bandwidth_kernel, pair, kSteps));
}

void measure_grid(int multiprocessors) {
  for (const int ctas : {32, 64, 128}) {
    if (ctas > multiprocessors) continue;
    for (int64_t bytes = 2 << 10; bytes <= 128 << 10; bytes *= 4) {
      if (bytes < ctas * kVectorBytes) continue;
      const int steps = static_cast<int>(std::min<int64_t>(1000, kMemoryBytes / bytes));
      const LaunchConfig config = config_of(ctas, 1, 0, true);
      const auto print = [&](const char* what, auto kernel) {
        print_row(what, ctas, bytes, cycles_per_step(kernel, config, steps, memory, counter, bytes));
      };
      print("grid exchange, sentinel", grid_exchange_kernel<GridExchange::kSentinel>);
      print("grid exchange, barrier", grid_exchange_kernel<GridExchange::kGridBarrier>);
      print("grid exchange, counter", grid_exchange_kernel<GridExchange::kCounter>);
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
}  // namespace fusedlstm::gpu

int main() {
  fusedlstm::gpu::measure_all();
}
