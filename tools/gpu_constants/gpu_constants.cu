// E1: cycles that the hardware takes for what the kernels do in a step. Prints one JSON object per line.
//
//   nvcc -std=c++20 -O3 --expt-relaxed-constexpr -arch=sm_90a -Icsrc tools/gpu_constants/gpu_constants.cu
//   csrc/cuda/host/kernel_attributes.cpp -o gpu_constants
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
//   grid exchange           through L2: words of ones are not written yet; or a barrier of all CTAs first
//   resident clusters       cycles: how many run at once, one CTA on an SM
//   most CTAs on one SM     cycles: how many; bytes: shared memory of each
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "clusters.cuh"
#include "grid.cuh"
#include "tensor_cores.cuh"

namespace fusedlstm::cuda {
namespace {

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
