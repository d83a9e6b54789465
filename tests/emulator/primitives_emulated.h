// The names of csrc/cuda/device/primitives.cuh in C++, on the emulator. That header says what each one means.
#pragma once
#include <cmath>
#include <cstring>
#include <tuple>
#include <utility>

#include "emulator.h"
#include "streams.h"

#define threadIdx (::emulator::thread_index())
#define blockIdx (::emulator::block_index())
#define blockDim (::emulator::block_dimensions())
#define gridDim (::emulator::grid_dimensions())

namespace fusedlstm::cuda {

using emulator::Access;
using emulator::Site;

inline constexpr int kArch = 1 << 30;
using SharedAddress = uintptr_t;

template <class T>
T in_register(T x) {
  return x;
}

// ---- shared and global memory

inline char* shared_memory() {
  return emulator::dynamic_shared_memory();
}
inline SharedAddress shared_address(const void* p) {
  return reinterpret_cast<SharedAddress>(p);
}

template <class T>
T load_as(uintptr_t address, Access access, Site site) {
  T value;
  emulator::load(&value, address, sizeof(T), access, site);
  return value;
}
inline uint32_t load_shared32(SharedAddress a, Site site = Site::current()) {
  return load_as<uint32_t>(a, Access::kRead, site);
}
inline Vec4 load_shared128(SharedAddress a, Site site = Site::current()) {
  return load_as<Vec4>(a, Access::kRead, site);
}
inline void store_shared16(SharedAddress a, uint16_t v, Site site = Site::current()) {
  emulator::store(a, &v, 2, Access::kWrite, site);
}
inline void store_shared32(SharedAddress a, uint32_t v, Site site = Site::current()) {
  emulator::store(a, &v, 4, Access::kWrite, site);
}
inline void store_shared64(SharedAddress a, uint32_t v0, uint32_t v1, Site site = Site::current()) {
  const uint32_t v[2]{v0, v1};
  emulator::store(a, v, 8, Access::kWrite, site);
}
inline void store_shared128(SharedAddress a, Vec4 v, Site site = Site::current()) {
  emulator::store(a, &v, 16, Access::kWrite, site);
}

inline uintptr_t global_address(const void* p) {
  return reinterpret_cast<uintptr_t>(p);
}
inline Vec4 load_constant128(const void* p, Site site = Site::current()) {
  return load_as<Vec4>(global_address(p), Access::kConstantRead, site);
}
inline void load_constant128_if(bool is_wanted, const void* p, Vec4& v, Site site = Site::current()) {
  if (is_wanted) v = load_constant128(p, site);
}
inline Vec4 load_relaxed128(const void* p, Site site = Site::current()) {
  return load_as<Vec4>(global_address(p), Access::kRelaxedRead, site);
}
inline void load_relaxed128_if(bool is_wanted, const void* p, Vec4& v, Site site = Site::current()) {
  if (is_wanted) v = load_relaxed128(p, site);
}
inline void store_relaxed128(void* p, Vec4 v, Site site = Site::current()) {
  emulator::store(global_address(p), &v, 16, Access::kRelaxedWrite, site);
}

inline void prefetch_l2(const void* p, Site site = Site::current()) {
  emulator::prefetch(global_address(p), site);
}

// ---- synchronisation

inline void gpu_fence() {
  emulator::gpu_fence();
}
inline void block_sync(Site site = Site::current()) {
  emulator::block_sync(site);
}
inline void warp_sync(Site site = Site::current()) {
  emulator::warp_sync(site);
}

// ---- warp

inline uint32_t shuffle_xor(uint32_t v, int mask, Site site = Site::current()) {
  struct Operands {
    uint32_t in, out;
    int mask;
  } mine{v, 0, mask};
  auto compute = [](void* const* lanes) {
    auto lane = [&](int l) { return static_cast<Operands*>(lanes[l]); };
    for (int l = 0; l < 32; ++l) lane(l)->out = lane((l ^ lane(l)->mask) & 31)->in;
  };
  emulator::warp_collective("shuffle_xor", &mine, compute, site);
  return mine.out;
}

inline bool warp_any(bool predicate, Site site = Site::current()) {
  auto compute = [](void* const* lanes) {
    bool any = false;
    for (int l = 0; l < 32; ++l) any = any || *static_cast<bool*>(lanes[l]);
    for (int l = 0; l < 32; ++l) *static_cast<bool*>(lanes[l]) = any;
  };
  emulator::warp_collective("warp_any", &predicate, compute, site);
  return predicate;
}

template <emulator::MmaKind kKind>
void mma(emulator::MmaOperands operands, Site site) {
  emulator::warp_collective("mma", &operands, &emulator::compute_mma<kKind>, site);
}
inline void mma_bf16(float* d, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1,
                     Site site = Site::current()) {
  mma<emulator::MmaKind::kBf16>({d, {a0, a1, a2, a3}, {b0, b1}}, site);
}
inline void mma_f16(float* d, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1,
                    Site site = Site::current()) {
  mma<emulator::MmaKind::kF16>({d, {a0, a1, a2, a3}, {b0, b1}}, site);
}
inline void mma_f16_k8(float* d, uint32_t a0, uint32_t a1, uint32_t b0, Site site = Site::current()) {
  mma<emulator::MmaKind::kF16K8>({d, {a0, a1, 0, 0}, {b0, 0}}, site);
}
inline void mma_tf32(float* d, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1,
                     Site site = Site::current()) {
  mma<emulator::MmaKind::kTf32>({d, {a0, a1, a2, a3}, {b0, b1}}, site);
}

// ---- cluster and mbarrier

inline int cluster_rank() {
  return emulator::cluster_rank();
}
inline int cluster_size() {
  return emulator::cluster_size();
}
inline SharedAddress map_cluster_address(SharedAddress a, int rank, Site site = Site::current()) {
  return emulator::map_cluster_address(a, rank, site);
}
inline void cluster_sync(Site site = Site::current()) {
  emulator::cluster_sync(site);
}
inline void mbarrier_init(SharedAddress barrier, int arrivals, Site site = Site::current()) {
  emulator::mbarrier_init(barrier, arrivals, site);
}
inline void mbarrier_init_fence() {
  emulator::mbarrier_init_fence();
}
inline void mbarrier_arrive_expect(SharedAddress barrier, int bytes, Site site = Site::current()) {
  emulator::mbarrier_arrive_expect(barrier, bytes, site);
}
template <Scope kScope>
bool mbarrier_try_wait(SharedAddress barrier, int parity, Site site = Site::current()) {
  return emulator::mbarrier_try_wait(barrier, parity, kScope == Scope::kCluster, site);
}
inline void store_async64(SharedAddress a, uint32_t v0, uint32_t v1, SharedAddress barrier,
                          Site site = Site::current()) {
  const uint32_t v[2]{v0, v1};
  emulator::store_async(a, v, 8, barrier, site);
}
inline void store_async128(SharedAddress a, Vec4 v, SharedAddress barrier, Site site = Site::current()) {
  emulator::store_async(a, &v, 16, barrier, site);
}

inline void bulk_copy(SharedAddress to, SharedAddress from, int bytes, SharedAddress barrier,
                      Site site = Site::current()) {
  emulator::bulk_copy(to, from, bytes, barrier, site);
}
inline void bulk_copy_fence() {
  emulator::bulk_copy_fence();
}

// ---- waits that have no end

inline uint32_t timer_high() {
  return emulator::timer_high();
}
inline void give_up(const char* text, const char* kernel, Site site = Site::current()) {
  emulator::give_up(text, kernel, site);
}

// ---- numbers

inline uint32_t float_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float bits_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t round_to_tf32(float x) {
  return x != x ? 0x7FFFFFFFu : (float_bits(x) + 0x1000) & 0xFFFFE000;
}
inline uint16_t bf16_bits(float x) {
  if (x != x) return 0x7FFF;
  const uint32_t bits = float_bits(x);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
inline uint16_t f16_bits(float x) {
  if (x != x) return 0x7FFF;
  const _Float16 half = static_cast<_Float16>(x);
  uint16_t bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}
inline uint32_t pack_bf16(float low, float high) {
  return bf16_bits(low) | static_cast<uint32_t>(bf16_bits(high)) << 16;
}
inline uint32_t pack_f16(float low, float high) {
  return f16_bits(low) | static_cast<uint32_t>(f16_bits(high)) << 16;
}

// always_inline: g++ does not instrument the store of a structure that an outlined function returns.
__forceinline__ float to_acc(float x) {
  return x;
}
__forceinline__ double to_acc(double x) {
  return x;
}
__forceinline__ float to_acc(BFloat16 x) {
  return bits_float(static_cast<uint32_t>(x.bits) << 16);
}
__forceinline__ float to_acc(Float16 x) {
  _Float16 half;
  std::memcpy(&half, &x.bits, 2);
  return static_cast<float>(half);
}
template <class scalar_t>
__forceinline__ scalar_t from_acc(AccOf<scalar_t> x) {
  return x;
}
template <>
__forceinline__ BFloat16 from_acc<BFloat16>(float x) {
  return BFloat16{bf16_bits(x)};
}
template <>
__forceinline__ Float16 from_acc<Float16>(float x) {
  return Float16{f16_bits(x)};
}

// What the hardware may return in place of the exact f(x), at Options::approximation = 1: the whole of the relative
// error that is documented, up or down as the bits of x happen to be. Infinities give the limits.
inline float approximated(double exact, float x, float error) {
  if (std::isinf(x)) return static_cast<float>(exact);
  const bool is_up = float_bits(x) * 0x9E3779B1u >> 31;
  return static_cast<float>(exact * (1.0 + emulator::options().approximation * (is_up ? error : -error)));
}
inline float tanh_fast(float x) {
  return approximated(std::tanh(double{x}), x, 0x1p-11f);
}
inline float zero_if_tiny(float x) {
  return std::abs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x;
}
inline float exp2_fast(float x) {
  return zero_if_tiny(approximated(std::exp2(double{x}), x, 2 * 0x1p-23f));
}
inline float reciprocal_fast(float x) {
  return zero_if_tiny(approximated(1 / double{zero_if_tiny(x)}, x, 0x1p-23f));
}
inline float multiply_rounded(float a, float b) {
  return a * b;
}
inline double multiply_rounded(double a, double b) {
  return a * b;
}

// ---- launch: a fault of the kernel throws emulator::Error

template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), const LaunchConfig& config, cudaStream_t stream, Args&&... args) {
  if (const int error = emulator::options().launch_error) return static_cast<cudaError_t>(error);
  const auto* address = reinterpret_cast<const void*>(kernel);
  const cudaError_t error = kernel_attributes().allow(address, config.smem_bytes, config.cluster_size());
  if (error != cudaSuccess) return error;
  std::tuple<Params...> params(static_cast<Params>(args)...);
  const auto run = [=] {
    auto body = [kernel, params] { std::apply(kernel, params); };  // on the host's stack, where kernels may read it
    const auto list = [](const auto&... p) { return std::vector<emulator::Parameter>{{&p, sizeof p}...}; };
    emulator::run_launch(
        address, config, std::apply(list, params), [](void* b) { (*static_cast<decltype(body)*>(b))(); }, &body);
  };
  const unsigned ctas = config.grid.x * config.grid.y * config.grid.z;
  emulator::enqueue(stream, {run, config.cooperative ? ctas : 0});
  return cudaSuccess;
}

}  // namespace fusedlstm::cuda
