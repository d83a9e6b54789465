// Device primitives: everything of the GPU that plain CUDA C++ does not say. The only file with inline PTX.
//
// Kernel sources include this file and nothing else of CUDA. They are compiled twice: by nvcc, with the
// definitions below, and by a C++ compiler with -DFUSEDLSTM_EMULATE for the tests, where tests/emulator supplies
// the same names in C++ and checks every access. A new primitive gets both in one commit.
//
// What kernel sources may use besides these names: threadIdx, blockIdx, blockDim, gridDim, __global__, __device__,
// __host__, __forceinline__, __launch_bounds__, __grid_constant__, #pragma unroll, <cmath>, and on the host
// cudaStream_t, cudaError_t, cudaMemsetAsync, dim3. Rules that the emulation relies on:
//   * shared memory only through `shared_memory()`; no __shared__ variables;
//   * device functions are __forceinline__;
//   * whole warps reach a barrier, a shuffle or an mma together; no early return before a barrier;
//   * the CTAs of a launch may wait for each other only if it is cooperative (or inside one cluster).
//
// Scopes: "warp" functions are called by all 32 lanes at the same place. "relaxed" accesses are atomic per 4-byte
// word at GPU scope, and order nothing else but by gpu_fence. Addresses are aligned to the bytes accessed.
#pragma once
#include <cuda_runtime_api.h>

#include <cassert>
#include <cstddef>
#include <cstdint>

#include "cuda/host/kernel_attributes.h"
#include "dtypes.h"

namespace fusedlstm::cuda {

// 16 bytes: what one lane moves at a time, and two k-steps of one mma operand.
struct Vec4 {
  uint32_t w[4];
};

// Between which threads an acquire makes writes visible.
enum class Scope : uint8_t { kBlock, kCluster };

// One kernel launch. `cluster` CTAs share their shared memory (sm_90 and later); a `cooperative` grid is resident
// as a whole, or the launch fails.
struct LaunchConfig {
  dim3 grid{1, 1, 1};
  dim3 block{1, 1, 1};
  dim3 cluster{1, 1, 1};
  size_t smem_bytes = 0;
  bool cooperative = false;

  unsigned cluster_size() const { return cluster.x * cluster.y * cluster.z; }
};

}  // namespace fusedlstm::cuda

#ifdef FUSEDLSTM_EMULATE
#include "primitives_emulated.h"
#else

#include <cuda_runtime.h>

namespace fusedlstm::cuda {

// The architecture being compiled for, times ten (750, 800, 900 ...); in host code and in the emulation, all of them.
// Kernels guard their whole body with it: see has_code in cuda/host/kernel_shapes.h.
#ifdef __CUDA_ARCH__
inline constexpr int kArch = __CUDA_ARCH__;
#else
inline constexpr int kArch = 1 << 30;
#endif

// ---- registers --------------------------------------------------------------------------------------------------

// x, but no compiler knows any more how it was computed: so that it keeps it in a register instead of computing it anew
// in every time step.
__device__ __forceinline__ uint32_t in_register(uint32_t x) {
  asm volatile("" : "+r"(x));
  return x;
}
__device__ __forceinline__ int in_register(int x) {
  return static_cast<int>(in_register(static_cast<uint32_t>(x)));
}
__device__ __forceinline__ int64_t in_register(int64_t x) {
  asm volatile("" : "+l"(x));
  return x;
}
__device__ __forceinline__ float in_register(float x) {
  asm volatile("" : "+f"(x));
  return x;
}
// Of global memory.
template <class T>
__device__ __forceinline__ T* in_register(T* x) {
  size_t global = __cvta_generic_to_global(x);
  asm volatile("" : "+l"(global));
  return static_cast<T*>(__cvta_global_to_generic(global));
}

// ---- shared memory of the CTA -----------------------------------------------------------------------------------

// A shared memory address as the instructions take it, of this CTA or (map_cluster_address) of a peer in the cluster.
using SharedAddress = uint32_t;

// The CTA's dynamic shared memory (LaunchConfig::smem_bytes), aligned to 128 bytes. Its content is undefined.
__device__ __forceinline__ char* shared_memory() {
  extern __shared__ __align__(128) char fusedlstm_shared_memory[];
  return fusedlstm_shared_memory;
}

__device__ __forceinline__ SharedAddress shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ uint32_t load_shared32(SharedAddress a) {
  uint32_t v;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(v) : "r"(a) : "memory");
  return v;
}

__device__ __forceinline__ Vec4 load_shared128(SharedAddress a) {
  Vec4 v;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
               : "r"(a)
               : "memory");
  return v;
}

__device__ __forceinline__ void store_shared16(SharedAddress a, uint16_t v) {
  asm volatile("st.shared.b16 [%0], %1;" ::"r"(a), "h"(v) : "memory");
}

__device__ __forceinline__ void store_shared32(SharedAddress a, uint32_t v) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(a), "r"(v) : "memory");
}

__device__ __forceinline__ void store_shared64(SharedAddress a, uint32_t v0, uint32_t v1) {
  asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(a), "r"(v0), "r"(v1) : "memory");
}

__device__ __forceinline__ void store_shared128(SharedAddress a, Vec4 v) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(a), "r"(v.w[0]), "r"(v.w[1]), "r"(v.w[2]), "r"(v.w[3])
               : "memory");
}

// ---- global memory ----------------------------------------------------------------------------------------------

// Through the read-only cache: only for data that nothing writes during the launch. v stays as it is where the load is
// not wanted.
__device__ __forceinline__ void load_constant128_if(bool is_wanted, const void* p, Vec4& v) {
  asm volatile(
      "{\n"
      ".reg .pred wanted;\n"
      "setp.ne.u32 wanted, %5, 0;\n"
      "@wanted ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];\n"
      "}"
      : "+r"(v.w[0]), "+r"(v.w[1]), "+r"(v.w[2]), "+r"(v.w[3])
      : "l"(p), "r"(static_cast<uint32_t>(is_wanted)));
}
__device__ __forceinline__ Vec4 load_constant128(const void* p) {
  Vec4 v{};
  load_constant128_if(true, p, v);
  return v;
}

// For polling data that other CTAs publish with store_relaxed128: each of the four words is old or new on its own. v
// stays as it is where the load is not wanted.
__device__ __forceinline__ void load_relaxed128_if(bool is_wanted, const void* p, Vec4& v) {
  asm volatile(
      "{\n"
      ".reg .pred wanted;\n"
      "setp.ne.u32 wanted, %5, 0;\n"
      "@wanted ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];\n"
      "}"
      : "+r"(v.w[0]), "+r"(v.w[1]), "+r"(v.w[2]), "+r"(v.w[3])
      : "l"(p), "r"(static_cast<uint32_t>(is_wanted))
      : "memory");
}
__device__ __forceinline__ Vec4 load_relaxed128(const void* p) {
  Vec4 v{};
  load_relaxed128_if(true, p, v);
  return v;
}

__device__ __forceinline__ void store_relaxed128(void* p, Vec4 v) {
  asm volatile("st.relaxed.gpu.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.w[0]), "r"(v.w[1]), "r"(v.w[2]),
               "r"(v.w[3])
               : "memory");
}

// Asks for the line in L2, and waits for nothing. The address is one that could be read.
__device__ __forceinline__ void prefetch_l2(const void* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

// Between threads of the whole GPU: who reads what another wrote with store_relaxed128, and has a fence after it, sees
// all that the other did before its last fence before the store. Waits for the thread's own stores.
__device__ __forceinline__ void gpu_fence() {
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
}

// ---- synchronisation within the CTA -----------------------------------------------------------------------------

// All threads of the CTA; orders their accesses to shared and global memory.
__device__ __forceinline__ void block_sync() {
  __syncthreads();
}

// All lanes of the warp; orders their accesses to shared and global memory.
__device__ __forceinline__ void warp_sync() {
  __syncwarp();
}

// ---- warp: all 32 lanes; none of these orders memory ---------------------------------------------------------------

// The value of lane (own lane ^ mask).
__device__ __forceinline__ uint32_t shuffle_xor(uint32_t v, int mask) {
  return __shfl_xor_sync(~0u, v, mask);
}

__device__ __forceinline__ bool warp_any(bool predicate) {
  return __any_sync(~0u, predicate);
}

// Matrix products D[16 x 8] += A[16 x K] * B[K x 8], accumulated in float32. With g = lane / 4, t = lane % 4:
// d[0..3] = D(g, 2t) D(g, 2t+1) D(g+8, 2t) D(g+8, 2t+1) in every form; 16-bit operands come in pairs, low half first:
//   16-bit, K = 16:  a0 = A(g, 2t..), a1 = A(g+8, 2t..), a2 = A(g, 2t+8..), a3 = A(g+8, 2t+8..);
//                    b0 = B(2t.., g), b1 = B(2t+8.., g)
//   16-bit, K = 8:   a0 = A(g, 2t..), a1 = A(g+8, 2t..); b0 = B(2t.., g)
//   TF32, K = 8:     a0 = A(g, t), a1 = A(g+8, t), a2 = A(g, t+4), a3 = A(g+8, t+4); b0 = B(t, g), b1 = B(t+4, g)
// TF32 operands must have passed round_to_tf32, else their low bits are cut off.
__device__ __forceinline__ void mma_bf16(float* d, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                         uint32_t b1) {  // sm_80 and later
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_f16(float* d, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                        uint32_t b1) {  // sm_80 and later
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_f16_k8(float* d, uint32_t a0, uint32_t a1, uint32_t b0) {  // sm_75 and later
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a0), "r"(a1), "r"(b0));
}

__device__ __forceinline__ void mma_tf32(float* d, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                         uint32_t b1) {  // sm_80 and later
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// ---- cluster of CTAs with distributed shared memory: sm_90 and later ----------------------------------------------

__device__ __forceinline__ int cluster_rank() {
  uint32_t r;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return static_cast<int>(r);
}

__device__ __forceinline__ int cluster_size() {
  uint32_t r;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(r));
  return static_cast<int>(r);
}

// The address in CTA `rank` of the cluster that corresponds to `a` in this one; so do sums of both with an offset.
__device__ __forceinline__ SharedAddress map_cluster_address(SharedAddress a, int rank) {
  uint32_t r;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(rank));
  return r;
}

// All threads of the cluster; orders their accesses. Once at the start (no CTA may be written to before it runs) and
// once at the end (none may exit while peers write to it), never per step: it also waits for stores to global memory.
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// ---- mbarrier in shared memory, 8 bytes: sm_90 and later ----------------------------------------------------------
// A phase completes when `arrivals` threads have arrived and all expected bytes have landed; then the next one starts.

__device__ __forceinline__ void mbarrier_init(SharedAddress barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes this thread's mbarrier_init visible to the cluster; a cluster_sync follows.
__device__ __forceinline__ void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Arrives at the CTA's own barrier, whose current phase also waits for `bytes` more by store_async64, store_async128
// and bulk_copy.
__device__ __forceinline__ void mbarrier_arrive_expect(SharedAddress barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Whether the phase with this parity (0 for the first, then alternating) is complete: then what was written for it may
// be read, if the writer is within the scope: the CTA itself, or with kCluster its peers too. Of the phase before it
// always true. Waits some time, which the hardware chooses, before it says no.
template <Scope kScope>
__device__ __forceinline__ bool mbarrier_try_wait(SharedAddress barrier, int parity) {
  uint32_t done;
#define FUSEDLSTM_TRY_WAIT(scope)               \
  asm volatile(                                 \
      "{\n"                                     \
      ".reg .pred done;\n"                      \
      "mbarrier.try_wait.parity.acquire." scope \
      ".shared::cta.b64 done, [%1], %2;\n"      \
      "selp.u32 %0, 1, 0, done;\n"              \
      "}"                                       \
      : "=r"(done)                              \
      : "r"(barrier), "r"(parity)               \
      : "memory")
  if constexpr (kScope == Scope::kCluster)
    FUSEDLSTM_TRY_WAIT("cluster");
  else
    FUSEDLSTM_TRY_WAIT("cta");
#undef FUSEDLSTM_TRY_WAIT
  return done != 0;
}

// Writes to shared memory of any CTA of the cluster and then counts the bytes at `barrier` in that same CTA. The
// writer may go on at once; nothing else tells anybody that the data is there.
__device__ __forceinline__ void store_async64(SharedAddress a, uint32_t v0, uint32_t v1, SharedAddress barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(a), "r"(v0),
               "r"(v1), "r"(barrier)
               : "memory");
}
__device__ __forceinline__ void store_async128(SharedAddress a, Vec4 v, SharedAddress barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(a),
               "r"(v.w[0]), "r"(v.w[1]), "r"(v.w[2]), "r"(v.w[3]), "r"(barrier)
               : "memory");
}

// Copies `bytes` of the CTA's own shared memory to that of any CTA of the cluster, and then counts them at `barrier` in
// that same CTA; addresses and bytes are multiples of 16. One thread calls it, and may go on at once: what is copied is
// read at any time before it has arrived. Bulk copies are of another proxy than loads and stores. What threads have
// stored where one reads, or where it writes, each thread has to hand over by a bulk_copy_fence before the barrier that
// the copy comes after. What a copy has written needs no fence: the wait at the barrier hands it over.
__device__ __forceinline__ void bulk_copy(SharedAddress to, SharedAddress from, int bytes, SharedAddress barrier) {
  asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "r"(from), "r"(bytes), "r"(barrier)
               : "memory");
}

// Hands over what this thread has stored in the CTA's shared memory so far.
__device__ __forceinline__ void bulk_copy_fence() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- waits that have no end ---------------------------------------------------------------------------------------

// A clock of 2^32 ns, 4.3 s, a unit.
__device__ __forceinline__ uint32_t timer_high() {
  uint32_t t;
  asm volatile("mov.u32 %0, %%globaltimer_hi;" : "=r"(t));
  return t;
}

// Ends the kernel and with it the CUDA context: the driver prints the text, with the kernel, block and thread, when the
// process next waits for the device, and every call fails with cudaErrorAssert from then on.
__device__ __forceinline__ void give_up(const char* text, const char* kernel) {
  __assert_fail(text, __FILE__, __LINE__, kernel);
  __builtin_unreachable();  // so that no register is kept for what follows
}

// ---- numbers ------------------------------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t float_bits(float x) {
  return __float_as_uint(x);
}
__device__ __forceinline__ float bits_float(uint32_t x) {
  return __uint_as_float(x);
}

// To the nearest TF32 number, ties away from zero; as an mma operand. NaN gives the canonical NaN: cvt.rna.tf32 cuts
// its low bits off like any others, and where it has no more than those, infinity is left.
__device__ __forceinline__ uint32_t round_to_tf32(float x) {
  return x != x ? 0x7FFFFFFFu : (float_bits(x) + 0x1000) & 0xFFFFE000;
}

// Two numbers rounded to nearest even, `low` in the low half. NaN gives the canonical NaN 0x7FFF, never 0xFFFF.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {  // sm_80 and later
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

__device__ __forceinline__ uint32_t pack_f16(float low, float high) {
  uint16_t l, h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(l) : "f"(low));
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(high));
  return static_cast<uint32_t>(h) << 16 | l;
}

__device__ __forceinline__ float to_acc(float x) {
  return x;
}
__device__ __forceinline__ double to_acc(double x) {
  return x;
}
__device__ __forceinline__ float to_acc(BFloat16 x) {
  return bits_float(static_cast<uint32_t>(x.bits) << 16);
}
__device__ __forceinline__ float to_acc(Float16 x) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x.bits));
  return r;
}

// Rounded to nearest even, NaN canonical; for every scalar_t of dtypes.h, on every architecture.
template <class scalar_t>
__device__ __forceinline__ scalar_t from_acc(AccOf<scalar_t> x) {
  return x;
}
template <>
__device__ __forceinline__ BFloat16 from_acc<BFloat16>(float x) {
  if constexpr (kArch >= 800) return BFloat16{static_cast<uint16_t>(pack_bf16(x, 0.0f))};
  const uint32_t bits = float_bits(x);  // sm_75 has no conversion instruction
  if (x != x) return BFloat16{0x7FFF};
  return BFloat16{static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}
template <>
__device__ __forceinline__ Float16 from_acc<Float16>(float x) {
  return Float16{static_cast<uint16_t>(pack_f16(x, 0.0f))};
}

// One instruction, relative error up to 2^-11: good for results that are rounded to bfloat16, for nothing else.
__device__ __forceinline__ float tanh_fast(float x) {
  float r;
  asm("tanh.approx.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}

// 2^x within 2 ulp and 1 / x within 1 ulp, one instruction each: zero stands for what is smaller than 2^-126, among
// what they take and what they give.
__device__ __forceinline__ float exp2_fast(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
__device__ __forceinline__ float reciprocal_fast(float x) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}

// Never contracted into a multiply-add.
__device__ __forceinline__ float multiply_rounded(float a, float b) {
  return __fmul_rn(a, b);
}
__device__ __forceinline__ double multiply_rounded(double a, double b) {
  return __dmul_rn(a, b);
}

// ---- launch -------------------------------------------------------------------------------------------------------

// Launches on `stream`; the error is that of this launch, nothing is left behind in cudaGetLastError.
template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), const LaunchConfig& config, cudaStream_t stream, Args&&... args) {
  cudaError_t error =
      kernel_attributes().allow(reinterpret_cast<const void*>(kernel), config.smem_bytes, config.cluster_size());
  if (error == cudaSuccess) {
    cudaLaunchAttribute attributes[2];
    cudaLaunchConfig_t c{};
    c.gridDim = config.grid;
    c.blockDim = config.block;
    c.dynamicSmemBytes = config.smem_bytes;
    c.stream = stream;
    c.attrs = attributes;
    if (config.cluster_size() > 1) {
      attributes[c.numAttrs].id = cudaLaunchAttributeClusterDimension;
      attributes[c.numAttrs].val.clusterDim.x = config.cluster.x;
      attributes[c.numAttrs].val.clusterDim.y = config.cluster.y;
      attributes[c.numAttrs].val.clusterDim.z = config.cluster.z;
      ++c.numAttrs;
    }
    if (config.cooperative) {
      attributes[c.numAttrs].id = cudaLaunchAttributeCooperative;
      attributes[c.numAttrs].val.cooperative = 1;
      ++c.numAttrs;
    }
    error = cudaLaunchKernelEx(&c, kernel, static_cast<Params>(args)...);
  }
  if (error != cudaSuccess) (void)cudaGetLastError();
  return error;
}

}  // namespace fusedlstm::cuda

#endif  // FUSEDLSTM_EMULATE
