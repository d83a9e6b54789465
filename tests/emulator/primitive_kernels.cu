// One tiny kernel per primitive: words in, words out. The same file is compiled for the emulator and by nvcc for a GPU,
// so that the CPU twins can be compared with the hardware (test_primitives.py).
#include <cstring>
#include <iterator>

#include "cuda/device/rows.cuh"

namespace fusedlstm::cuda {

// Each of the 32 lanes has 8 words: in[8 * lane ...], out[8 * lane ...].
template <int kKind>  // 0 bf16, 1 f16, 2 f16 with K = 8, 3 tf32; words 0-3 a, 4-5 b; d starts from lane + i
__global__ void mma_kernel(const uint32_t* in, uint32_t* out) {
  const uint32_t* v = in + 8 * threadIdx.x;
  float d[4];
  for (int i = 0; i < 4; ++i) d[i] = static_cast<float>(threadIdx.x + i);
  if constexpr (kKind == 2) mma_f16_k8(d, v[0], v[1], v[4]);
  if constexpr (kArch >= 800) {
    if constexpr (kKind == 0) mma_bf16(d, v[0], v[1], v[2], v[3], v[4], v[5]);
    if constexpr (kKind == 1) mma_f16(d, v[0], v[1], v[2], v[3], v[4], v[5]);
    if constexpr (kKind == 3) mma_tf32(d, v[0], v[1], v[2], v[3], v[4], v[5]);
  }
  for (int i = 0; i < 4; ++i) out[8 * threadIdx.x + i] = float_bits(d[i]);
}

__global__ void warp_kernel(const uint32_t* in, uint32_t* out) {
  const uint32_t v = in[8 * threadIdx.x];
  uint32_t* result = out + 8 * threadIdx.x;
  for (int i = 0; i < 5; ++i) result[i] = shuffle_xor(v, 1 << i);
  result[5] = warp_any(threadIdx.x == v % 32);
  result[6] = warp_any(false);
}

// All numbers are given and returned as bits.
__global__ void number_kernel(const uint32_t* in, uint32_t* out) {
  for (int i = 0; i < 8; ++i) {
    const float x = bits_float(in[8 * threadIdx.x + i]);
    uint32_t* result = out + 8 * (8 * threadIdx.x + i);
    if constexpr (kArch >= 800) {
      result[0] = round_to_tf32(x);
      result[1] = pack_bf16(x, 1.0f);
    }
    result[2] = pack_f16(x, 1.0f);
    result[3] = float_bits(to_acc(from_acc<BFloat16>(x)));
    result[4] = float_bits(to_acc(from_acc<Float16>(x)));
    result[5] = float_bits(tanh_fast(x));
    result[6] = float_bits(exp2_fast(x));
    result[7] = float_bits(reciprocal_fast(x));
  }
}

// What the kernels of all types but bfloat16 and float64 make of primitives.
__global__ void activation_kernel(const uint32_t* in, uint32_t* out) {
  for (int i = 0; i < 8; ++i) {
    const float x = bits_float(in[8 * threadIdx.x + i]);
    uint32_t* result = out + 8 * (8 * threadIdx.x + i);
    result[0] = float_bits(ActivationMath<float>::sigmoid(x));
    result[1] = float_bits(ActivationMath<float>::tanh(x));
  }
}

// Lane l writes in[8l...] to shared memory in every width, reads its neighbour's back, and publishes to global memory.
__global__ void memory_kernel(const uint32_t* in, uint32_t* out) {
  prefetch_l2(in + 8 * threadIdx.x);
  Vec4 a = load_constant128(in + 8 * threadIdx.x), b = load_relaxed128(in + 8 * threadIdx.x + 4);
  load_constant128_if(false, nullptr, a);
  load_relaxed128_if(false, nullptr, b);
  const SharedAddress mine = shared_address(shared_memory()) + 32 * threadIdx.x;
  store_shared128(mine, a);
  store_shared64(mine + 16, b.w[0], b.w[1]);
  store_shared32(mine + 24, b.w[2]);
  store_shared16(mine + 28, static_cast<uint16_t>(b.w[3]));
  store_shared16(mine + 30, static_cast<uint16_t>(b.w[3] >> 16));
  block_sync();
  const SharedAddress other = shared_address(shared_memory()) + 32 * (threadIdx.x ^ 1);
  gpu_fence();
  store_relaxed128(out + 8 * threadIdx.x, load_shared128(other));
  for (int i = 0; i < 4; ++i) out[8 * threadIdx.x + 4 + i] = load_shared32(other + 16 + 4 * i);
}

// Two CTAs: each sends a vector and a pair per lane to its peer, and reports rank, size and what it received.
__global__ void cluster_kernel(const uint32_t* in, uint32_t* out) {
  if constexpr (kArch >= 900) {
    const SharedAddress barrier = shared_address(shared_memory()), data = barrier + 64 + 16 * threadIdx.x;
    const SharedAddress pair = barrier + 64 + 16 * 32 + 8 * threadIdx.x;
    if (threadIdx.x == 0) {
      mbarrier_init(barrier, 1);
      mbarrier_init_fence();
      mbarrier_arrive_expect(barrier, 32 * (16 + 8));
    }
    cluster_sync();
    const int rank = cluster_rank(), peer = rank ^ 1;
    Vec4 v = load_constant128(in + 8 * threadIdx.x);
    v.w[0] += rank;
    store_async128(map_cluster_address(data, peer), v, map_cluster_address(barrier, peer));
    store_async64(map_cluster_address(pair, peer), in[8 * threadIdx.x + 6], in[8 * threadIdx.x + 7] + rank,
                  map_cluster_address(barrier, peer));
    while (!mbarrier_try_wait<Scope::kCluster>(barrier, 0));
    const Vec4 received = load_shared128(data);
    uint32_t* result = out + 8 * (32 * blockIdx.x + threadIdx.x);
    for (int i = 0; i < 4; ++i) result[i] = received.w[i];
    result[4] = rank;
    result[5] = cluster_size();
    for (int i = 0; i < 2; ++i) result[6 + i] = load_shared32(pair + 4 * i);
    cluster_sync();
  }
}

// Two CTAs: each copies what its lanes have stored to its peer.
__global__ void bulk_kernel(const uint32_t* in, uint32_t* out) {
  if constexpr (kArch >= 900) {
    constexpr int kLaneBytes = 32, kBytes = 32 * kLaneBytes;
    const SharedAddress barrier = shared_address(shared_memory()), from = barrier + 64, to = from + kBytes;
    const int mine = kLaneBytes * threadIdx.x, rank = cluster_rank(), peer = rank ^ 1;
    if (threadIdx.x == 0) {
      mbarrier_init(barrier, 1);
      mbarrier_init_fence();
      mbarrier_arrive_expect(barrier, kBytes);
    }
    cluster_sync();
    for (int i = 0; i < 8; ++i) store_shared32(from + mine + 4 * i, in[8 * threadIdx.x + i] + rank);
    bulk_copy_fence();
    block_sync();
    if (threadIdx.x == 0) bulk_copy(map_cluster_address(to, peer), from, kBytes, map_cluster_address(barrier, peer));
    while (!mbarrier_try_wait<Scope::kCluster>(barrier, 0));
    for (int i = 0; i < 8; ++i)
      out[8 * (32 * blockIdx.x + threadIdx.x) + i] = load_shared32(to + kLaneBytes * (31 - threadIdx.x) + 4 * i);
    cluster_sync();
  }
}

struct Entry {
  const char* name;
  void (*kernel)(const uint32_t*, uint32_t*);
  LaunchConfig config;
};
static const Entry kEntries[] = {
    {"mma_bf16", mma_kernel<0>, {1, 32, 1, 0, false}},
    {"mma_f16", mma_kernel<1>, {1, 32, 1, 0, false}},
    {"mma_f16_k8", mma_kernel<2>, {1, 32, 1, 0, false}},
    {"mma_tf32", mma_kernel<3>, {1, 32, 1, 0, false}},
    {"warp", warp_kernel, {1, 32, 1, 0, false}},
    {"number", number_kernel, {1, 32, 1, 0, false}},
    {"activation", activation_kernel, {1, 32, 1, 0, false}},
    {"memory", memory_kernel, {1, 32, 1, 1024, false}},
    {"cluster", cluster_kernel, {2, 32, 2, 1024, false}},
    {"bulk", bulk_kernel, {2, 32, 2, 4096, false}},
};

}  // namespace fusedlstm::cuda

// Runs a kernel by name on device memory: in 256 words, out 2048 words. Returns a cudaError_t, or -1 for no such
// kernel.
extern "C" int fusedlstm_run_primitive(const char* name, const uint32_t* in, uint32_t* out) {
  using namespace fusedlstm::cuda;
  for (const Entry& entry : kEntries)
    if (std::strcmp(entry.name, name) == 0) return launch(entry.kernel, entry.config, nullptr, in, out);
  return -1;
}
