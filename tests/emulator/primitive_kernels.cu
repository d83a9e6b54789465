// One tiny kernel per primitive: words in, words out. The same file is compiled for the emulator and by nvcc for a GPU,
// so that the CPU twins can be compared with the hardware (test_primitives.py).
#include <cstring>
#include <iterator>

#include "cuda/primitives.cuh"

namespace fusedlstm::gpu {

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
  result[7] = transpose_8x8(v);
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
    result[6] = float_bits(exp_fast(x));
    result[7] = float_bits(divide_fast(1.0f, x));
  }
}

// Lane l writes in[8l...] to shared memory in every width, reads its neighbour's back, and publishes to global memory.
__global__ void memory_kernel(const uint32_t* in, uint32_t* out) {
  const Vec4 a = load_constant128(in + 8 * threadIdx.x), b = load_relaxed128(in + 8 * threadIdx.x + 4);
  const SharedAddress mine = shared_address(shared_memory()) + 32 * threadIdx.x;
  store_shared128(mine, a);
  store_shared64(mine + 16, b.w[0], b.w[1]);
  store_shared32(mine + 24, b.w[2]);
  store_shared16(mine + 28, static_cast<uint16_t>(b.w[3]));
  store_shared16(mine + 30, static_cast<uint16_t>(b.w[3] >> 16));
  block_sync();
  const SharedAddress other = shared_address(shared_memory()) + 32 * (threadIdx.x ^ 1);
  store_relaxed128(out + 8 * threadIdx.x, load_shared128(other));
  for (int i = 0; i < 4; ++i) store_relaxed32(out + 8 * threadIdx.x + 4 + i, load_shared32(other + 16 + 4 * i));
}

// Two CTAs: each sends its words to its peer by store_async, and reports rank, size and what it received.
__global__ void cluster_kernel(const uint32_t* in, uint32_t* out) {
  if constexpr (kArch >= 900) {
    const SharedAddress barrier = shared_address(shared_memory()), data = barrier + 64 + 24 * threadIdx.x;
    if (threadIdx.x == 0) {
      mbarrier_init(barrier, 1);
      mbarrier_init_fence();
      mbarrier_arrive_expect(barrier, 32 * 24);
    }
    cluster_sync();
    const int rank = cluster_rank(), peer = rank ^ 1;
    const SharedAddress there = map_cluster_address(data, peer), barrier_there = map_cluster_address(barrier, peer);
    const uint32_t* v = in + 8 * threadIdx.x;
    store_async64(there, v[0] + rank, v[1], barrier_there);
    store_async64(there + 8, v[2], v[3], barrier_there);
    store_async64(there + 16, v[4], v[5], barrier_there);
    mbarrier_wait(barrier, 0);
    uint32_t* result = out + 8 * (32 * blockIdx.x + threadIdx.x);
    for (int i = 0; i < 6; ++i) result[i] = load_shared32(data + 4 * i);
    result[6] = rank;
    result[7] = cluster_size();
    cluster_sync();
  }
}
// The same with vectors, which need 16-byte alignment.
__global__ void cluster_vector_kernel(const uint32_t* in, uint32_t* out) {
  if constexpr (kArch >= 900) {
    const SharedAddress barrier = shared_address(shared_memory()), data = barrier + 64 + 16 * threadIdx.x;
    if (threadIdx.x == 0) {
      mbarrier_init(barrier, 1);
      mbarrier_init_fence();
      mbarrier_arrive_expect(barrier, 32 * 16);
    }
    cluster_sync();
    const int peer = cluster_rank() ^ 1;
    store_async128(map_cluster_address(data, peer), load_constant128(in + 8 * threadIdx.x),
                   map_cluster_address(barrier, peer));
    mbarrier_wait(barrier, 0);
    const Vec4 v = load_shared128(data);
    for (int i = 0; i < 4; ++i) out[4 * (32 * blockIdx.x + threadIdx.x) + i] = v.w[i];
    cluster_sync();
  }
}

// Four warps: warps 1-3 hand words over to warp 0 through a named barrier.
__global__ void barrier_kernel(const uint32_t* in, uint32_t* out) {
  const SharedAddress words = shared_address(shared_memory());
  store_shared32(words + 4 * threadIdx.x, in[threadIdx.x]);
  if (threadIdx.x >= 32) {
    barrier_arrive(1, 128);
  } else {
    barrier_sync(1, 128);
    for (int i = 0; i < 4; ++i) out[8 * threadIdx.x + i] = load_shared32(words + 4 * (32 * i + threadIdx.x));
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
    {"memory", memory_kernel, {1, 32, 1, 1024, false}},
    {"barrier", barrier_kernel, {1, 128, 1, 512, false}},
    {"cluster", cluster_kernel, {2, 32, 2, 1024, false}},
    {"cluster_vector", cluster_vector_kernel, {2, 32, 2, 1024, false}},
};

}  // namespace fusedlstm::gpu

// Runs a kernel by name on device memory: in 256 words, out 2048 words. Returns a cudaError_t, or -1 for no such
// kernel.
extern "C" int fusedlstm_run_primitive(const char* name, const uint32_t* in, uint32_t* out) {
  using namespace fusedlstm::gpu;
  for (const Entry& entry : kEntries)
    if (std::strcmp(entry.name, name) == 0) return launch(entry.kernel, entry.config, nullptr, in, out);
  return -1;
}
