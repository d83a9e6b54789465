// Tiny kernels that are right or wrong in exactly one way; tests/test_emulator.py says what the checker must answer.
#include <map>
#include <string>

#include "cuda/device/primitives.cuh"

namespace fusedlstm::cuda {

__forceinline__ SharedAddress shared_word(int i) {
  return shared_address(shared_memory()) + 4 * i;
}

// ---- one warp or CTA --------------------------------------------------------------------------------------------

template <bool kSync>
__global__ void warp_exchange(uint32_t* out) {
  store_shared32(shared_word(threadIdx.x), threadIdx.x);
  if (kSync) warp_sync();
  out[threadIdx.x] = load_shared32(shared_word(threadIdx.x ^ 31));
}
__global__ void shuffle_taken_for_a_fence(uint32_t* out) {
  store_shared32(shared_word(threadIdx.x), 1);
  const uint32_t peer = shuffle_xor(threadIdx.x, 1);
  out[threadIdx.x] = load_shared32(shared_word(peer));
}
__global__ void misaligned_vector(uint32_t* out) {
  store_shared128(shared_word(4 * threadIdx.x), Vec4{{1, 2, 3, 4}});
  out[threadIdx.x] = load_shared128(shared_word(4 * threadIdx.x) + 4).w[0];
}
__global__ void misaligned_plain(uint32_t* out) {
  *reinterpret_cast<double*>(out + 2 * threadIdx.x + 1) = 1.0;
}
__global__ void past_the_end_of_shared(uint32_t* out) {
  store_shared32(shared_word(threadIdx.x + 993), 1);  // the launch has 4 KiB
  out[threadIdx.x] = 0;
}
__global__ void read_past_the_end(uint32_t* out) {
  out[threadIdx.x] = out[993 + threadIdx.x];
}
__global__ void write_past_the_end(uint32_t* out) {
  out[993 + threadIdx.x] = 1;
}
__global__ void local_array_overrun(uint32_t* out) {
  uint32_t a[8];
  for (int i = 0; i < 8; ++i) a[i] = out[i];
  block_sync();
  out[threadIdx.x] = a[threadIdx.x];
}
__global__ void too_much_stack(uint32_t* out) {
  uint32_t a[8000];
  for (uint32_t& each : a) each = out[threadIdx.x];
  block_sync();
  out[threadIdx.x] = a[out[threadIdx.x] % 8000];
}
__global__ void divergent_barrier(uint32_t* out) {
  if (threadIdx.x < 32) {
    block_sync();
  } else {
    out[threadIdx.x] = 1;
    block_sync();
  }
}
__global__ void early_return(uint32_t* out) {
  if (threadIdx.x >= 32) return;
  block_sync();
  out[threadIdx.x] = 1;
}
__global__ void half_a_warp(uint32_t* out) {
  if (threadIdx.x % 32 < 16) out[threadIdx.x] = shuffle_xor(1, 1);
}
__global__ void unwritten_shared(uint32_t* out) {
  out[threadIdx.x] = load_shared32(shared_word(threadIdx.x));
}
__global__ void unwritten_output(uint32_t* out) {
  out[threadIdx.x] += 1;
}
template <bool kSync>
__global__ void reuse_of_shared(uint32_t* out) {  // write after read
  store_shared32(shared_word(threadIdx.x), 1);
  block_sync();
  out[threadIdx.x] = load_shared32(shared_word(threadIdx.x ^ 32));
  if (kSync) block_sync();
  store_shared32(shared_word(threadIdx.x), 2);
}
__global__ void all_write_one_word(uint32_t* out) {
  out[0] = threadIdx.x;
}
__global__ void neighbours_write_halves(uint32_t* out) {
  reinterpret_cast<uint16_t*>(out)[threadIdx.x] = static_cast<uint16_t>(threadIdx.x);
}
__global__ void constant_table(uint32_t* out) {
  static constexpr uint32_t kTable[4] = {7, 8, 9, 10};
  out[threadIdx.x] = kTable[threadIdx.x & 3];
}
__global__ void constant_load_of_written_data(uint32_t* out) {
  out[threadIdx.x] = 1;
  block_sync();
  out[128 + threadIdx.x] = load_constant128(out + 4 * (threadIdx.x / 4)).w[0];
}

// ---- several CTAs ------------------------------------------------------------------------------------------------
// Block 0 publishes 32 vectors at out[256...], block 1 polls them. The buffer holds ~0, "not written", before.

__forceinline__ void publish(uint32_t* out) {
  const uint32_t v = threadIdx.x;
  store_relaxed128(out + 256 + 4 * threadIdx.x, Vec4{{v, v + 1, v + 2, v + 3}});
}
template <int kWords>  // how many words of a vector the poll looks at
__global__ void sentinel_poll(uint32_t* out) {
  if (blockIdx.x == 0) {
    publish(out);
  } else {
    Vec4 v;
    bool again;
    do {
      v = load_relaxed128(out + 256 + 4 * threadIdx.x);
      bool missing = false;
      for (int i = 0; i < kWords; ++i) missing = missing || v.w[i] == ~0u;
      again = warp_any(missing);
    } while (again);
    for (int i = 0; i < 4; ++i) out[4 * threadIdx.x + i] = v.w[i];
  }
}
__global__ void plain_read_of_published_data(uint32_t* out) {
  if (blockIdx.x == 0) publish(out);
  if (blockIdx.x == 1) out[threadIdx.x] = out[256 + 4 * threadIdx.x];
}
__global__ void relaxed_store_then_barrier(uint32_t* out) {  // ordered, so visible at once
  store_relaxed128(out + 4 * threadIdx.x, Vec4{{threadIdx.x}});
  block_sync();
  out[256 + threadIdx.x] = load_relaxed128(out + 4 * (threadIdx.x ^ 32)).w[0];
}
__global__ void relaxed_store_without_barrier(uint32_t* out) {  // not ordered: late
  store_relaxed128(out + 4 * threadIdx.x, Vec4{{threadIdx.x}});
  shuffle_xor(0, 1);
  out[256 + threadIdx.x] = load_relaxed128(out + 4 * (threadIdx.x ^ 31)).w[0];
}

// ---- clusters of two CTAs ----------------------------------------------------------------------------------------

// CTA 1 reads what CTA 0 wrote before what it waits for.
template <bool kRelease, bool kAcquire>
__global__ void message_passing(uint32_t* out) {
  uint32_t *data = out + 4 * threadIdx.x, *flag = data + 128;
  if (blockIdx.x == 0) {
    for (uint32_t i = 1; i <= 2; ++i) store_relaxed128(data, Vec4{{i, i, i, i}});
    if (kRelease) gpu_fence();
    store_relaxed128(flag, Vec4{});
  } else {
    while (load_relaxed128(flag).w[0] != 0);
    if (kAcquire) gpu_fence();
    out[256 + threadIdx.x] = load_relaxed128(data).w[0];
  }
}
__global__ void prefetch_past_the_end(uint32_t* out) {
  prefetch_l2(out + 1023);
  prefetch_l2(out + 1024);
}

enum class Fault {
  kNone,
  kNoSyncAtStart,
  kNoInitFence,
  kNoSyncAtEnd,
  kWrongParity,
  kNoWait,
  kWaitWithinBlock,
  kTooFewBytes,
  kTooManyBytes,
  kSingleBuffer,
};
// Each CTA sends 128 bytes to its peer in two rounds, through buffers at words 32 and 64 and barriers at 0 and 2.
template <Fault kFault>
__global__ void exchange(uint32_t* out) {
  const int lane = threadIdx.x, peer = cluster_rank() ^ 1;
  const int bytes = 128 + (kFault == Fault::kTooFewBytes ? -16 : kFault == Fault::kTooManyBytes ? 16 : 0);
  if (lane == 0) {
    for (int i = 0; i < 2; ++i) mbarrier_init(shared_word(2 * i), 1);
    if (kFault != Fault::kNoInitFence) mbarrier_init_fence();
    for (int i = 0; i < 2; ++i) mbarrier_arrive_expect(shared_word(2 * i), bytes);
  }
  if (kFault == Fault::kNoSyncAtStart)
    block_sync();
  else
    cluster_sync();
  uint32_t sum = 0;
  for (int round = 0; round < 2; ++round) {
    const int buffer = kFault == Fault::kSingleBuffer ? 32 : 32 + 32 * round;
    const SharedAddress barrier = shared_word(2 * round);
    const uint32_t number = 100 * peer + 2 * lane, tag = round;
    if (lane < 8)
      store_async128(map_cluster_address(shared_word(buffer + 4 * lane), peer), Vec4{{number, tag, number + 1, tag}},
                     map_cluster_address(barrier, peer));
    constexpr Scope kScope = kFault == Fault::kWaitWithinBlock ? Scope::kBlock : Scope::kCluster;
    while (kFault != Fault::kNoWait && !mbarrier_try_wait<kScope>(barrier, kFault == Fault::kWrongParity ? 1 : 0));
    sum += load_shared32(shared_word(buffer + lane));
  }
  out[blockIdx.x * 32 + lane] = sum;
  if (kFault != Fault::kNoSyncAtEnd) cluster_sync();
}
template <bool kSyncAtEnd>
__global__ void send_and_exit(uint32_t* out) {  // the peer does not wait for what it is sent
  const SharedAddress peer = map_cluster_address(shared_word(0), cluster_rank() ^ 1);
  if (threadIdx.x == 0) {
    mbarrier_init(shared_word(0), 1);
    mbarrier_init_fence();
  }
  cluster_sync();
  if (threadIdx.x == 0) store_async128(peer + 64, Vec4{{1, 2, 3, 4}}, peer);
  out[blockIdx.x * 32 + threadIdx.x] = 0;
  if (kSyncAtEnd) cluster_sync();
}

enum class BulkFault {
  kNone,
  kNoFence,
  kFenceBeforeStores,
  kFenceOfCopier,
  kNoFenceOfPeer,
  kNoSync,
  kSourceOverwritten,
  kSourceUnwritten,
  kTooFewBytes,
  kTooManyBytes,
  kPeerLeftOut,
  kMisaligned,
  kSourceOfPeer,
};
// Each CTA copies 128 bytes to its peer, from words 32 on to words 64 on, which the peer has cleared.
template <BulkFault kFault>
__global__ void bulk_exchange(uint32_t* out) {
  const int lane = threadIdx.x, peer = cluster_rank() ^ 1;
  const SharedAddress barrier = shared_word(0), from = shared_word(32), to = shared_word(64);
  store_shared32(to + 4 * lane, 0);
  if (kFault != BulkFault::kNoFenceOfPeer) bulk_copy_fence();
  if (lane == 0) {
    mbarrier_init(barrier, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect(barrier, 128 + (kFault == BulkFault::kTooFewBytes    ? -16
                                           : kFault == BulkFault::kTooManyBytes ? 16
                                                                                : 0));
  }
  cluster_sync();
  if (kFault == BulkFault::kFenceBeforeStores) bulk_copy_fence();
  if (kFault != BulkFault::kSourceUnwritten || lane < 16) store_shared32(from + 4 * lane, 100 * peer + lane);
  constexpr bool kFences =
      kFault != BulkFault::kNoFence && kFault != BulkFault::kFenceBeforeStores && kFault != BulkFault::kFenceOfCopier;
  if (kFences) bulk_copy_fence();
  if (kFault != BulkFault::kNoSync) warp_sync();
  if (kFault == BulkFault::kFenceOfCopier) bulk_copy_fence();
  const bool sends = kFault != BulkFault::kPeerLeftOut || peer == 0;
  if (lane == 0 && sends)
    bulk_copy(map_cluster_address(to, peer) + (kFault == BulkFault::kMisaligned ? 8 : 0),
              kFault == BulkFault::kSourceOfPeer ? map_cluster_address(from, peer) : from, 128,
              map_cluster_address(barrier, peer));
  if (kFault == BulkFault::kSourceOverwritten) {  // what it waits for is the peer's copy, and not its own
    warp_sync();
    while (!mbarrier_try_wait<Scope::kCluster>(barrier, 0));
    store_shared32(from + 4 * lane, 0);
  }
  while (!mbarrier_try_wait<Scope::kCluster>(barrier, 0));
  out[blockIdx.x * 32 + lane] = load_shared32(to + 4 * lane);
  cluster_sync();
}
__global__ void divergent_cluster_exit(uint32_t* out) {
  out[blockIdx.x * 32 + threadIdx.x] = 0;
  if (blockIdx.x == 0) cluster_sync();
}

struct Case {
  void (*kernel)(uint32_t*);
  LaunchConfig config;
};
static const LaunchConfig kWarp{1, 32, 1, 4096, false}, kTwoWarps{1, 64, 1, 4096, false}, kGridOfTwo{2, 32, 1, 0, true},
    kWaves{2, 32, 1, 0, false}, kClusterOfTwo{2, 32, 2, 4096, false};

static const std::map<std::string, Case> kCases = {
    {"warp_exchange", {warp_exchange<true>, kWarp}},
    {"warp_exchange_without_warp_sync", {warp_exchange<false>, kWarp}},
    {"shuffle_taken_for_a_fence", {shuffle_taken_for_a_fence, kWarp}},
    {"misaligned_vector", {misaligned_vector, kWarp}},
    {"misaligned_plain", {misaligned_plain, kWarp}},
    {"past_the_end_of_shared", {past_the_end_of_shared, kWarp}},
    {"read_past_the_end", {read_past_the_end, kWarp}},
    {"write_past_the_end", {write_past_the_end, kWarp}},
    {"local_array_overrun", {local_array_overrun, kWarp}},
    {"too_much_stack", {too_much_stack, kWarp}},
    {"divergent_barrier", {divergent_barrier, kTwoWarps}},
    {"early_return", {early_return, kTwoWarps}},
    {"half_a_warp", {half_a_warp, kWarp}},
    {"unwritten_shared", {unwritten_shared, kWarp}},
    {"unwritten_output", {unwritten_output, kWarp}},
    {"reuse_of_shared", {reuse_of_shared<true>, kTwoWarps}},
    {"reuse_of_shared_without_barrier", {reuse_of_shared<false>, kTwoWarps}},
    {"all_write_one_word", {all_write_one_word, kWarp}},
    {"neighbours_write_halves", {neighbours_write_halves, kTwoWarps}},
    {"constant_table", {constant_table, kWarp}},
    {"constant_load_of_written_data", {constant_load_of_written_data, kWarp}},
    {"sentinel_poll", {sentinel_poll<4>, kGridOfTwo}},
    {"sentinel_poll_of_one_word", {sentinel_poll<1>, kGridOfTwo}},
    {"sentinel_poll_without_residency", {sentinel_poll<4>, kWaves}},
    {"plain_read_of_published_data", {plain_read_of_published_data, kGridOfTwo}},
    {"relaxed_store_then_barrier", {relaxed_store_then_barrier, kTwoWarps}},
    {"relaxed_store_without_barrier", {relaxed_store_without_barrier, kWarp}},
    {"message_passing", {message_passing<true, true>, kGridOfTwo}},
    {"message_passing_without_release", {message_passing<false, true>, kGridOfTwo}},
    {"message_passing_without_acquire", {message_passing<true, false>, kGridOfTwo}},
    {"prefetch_past_the_end", {prefetch_past_the_end, kWarp}},
    {"exchange", {exchange<Fault::kNone>, kClusterOfTwo}},
    {"exchange_no_sync_at_start", {exchange<Fault::kNoSyncAtStart>, kClusterOfTwo}},
    {"exchange_no_init_fence", {exchange<Fault::kNoInitFence>, kClusterOfTwo}},
    {"exchange_no_sync_at_end", {exchange<Fault::kNoSyncAtEnd>, kClusterOfTwo}},
    {"exchange_wrong_parity", {exchange<Fault::kWrongParity>, kClusterOfTwo}},
    {"exchange_no_wait", {exchange<Fault::kNoWait>, kClusterOfTwo}},
    {"exchange_wait_within_block", {exchange<Fault::kWaitWithinBlock>, kClusterOfTwo}},
    {"exchange_too_few_bytes", {exchange<Fault::kTooFewBytes>, kClusterOfTwo}},
    {"exchange_too_many_bytes", {exchange<Fault::kTooManyBytes>, kClusterOfTwo}},
    {"exchange_single_buffer", {exchange<Fault::kSingleBuffer>, kClusterOfTwo}},
    {"send_and_exit", {send_and_exit<true>, kClusterOfTwo}},
    {"send_and_exit_without_sync", {send_and_exit<false>, kClusterOfTwo}},
    {"bulk_exchange", {bulk_exchange<BulkFault::kNone>, kClusterOfTwo}},
    {"bulk_exchange_no_fence", {bulk_exchange<BulkFault::kNoFence>, kClusterOfTwo}},
    {"bulk_exchange_fence_before_stores", {bulk_exchange<BulkFault::kFenceBeforeStores>, kClusterOfTwo}},
    {"bulk_exchange_fence_of_copier", {bulk_exchange<BulkFault::kFenceOfCopier>, kClusterOfTwo}},
    {"bulk_exchange_no_fence_of_peer", {bulk_exchange<BulkFault::kNoFenceOfPeer>, kClusterOfTwo}},
    {"bulk_exchange_no_sync", {bulk_exchange<BulkFault::kNoSync>, kClusterOfTwo}},
    {"bulk_exchange_source_overwritten", {bulk_exchange<BulkFault::kSourceOverwritten>, kClusterOfTwo}},
    {"bulk_exchange_source_unwritten", {bulk_exchange<BulkFault::kSourceUnwritten>, kClusterOfTwo}},
    {"bulk_exchange_too_few_bytes", {bulk_exchange<BulkFault::kTooFewBytes>, kClusterOfTwo}},
    {"bulk_exchange_too_many_bytes", {bulk_exchange<BulkFault::kTooManyBytes>, kClusterOfTwo}},
    {"bulk_exchange_peer_left_out", {bulk_exchange<BulkFault::kPeerLeftOut>, kClusterOfTwo}},
    {"bulk_exchange_misaligned", {bulk_exchange<BulkFault::kMisaligned>, kClusterOfTwo}},
    {"bulk_exchange_source_of_peer", {bulk_exchange<BulkFault::kSourceOfPeer>, kClusterOfTwo}},
    {"divergent_cluster_exit", {divergent_cluster_exit, kClusterOfTwo}},
    {"too_many_ctas", {constant_table, {1000, 32, 1, 0, true}}},
    {"too_much_shared_memory", {constant_table, {1, 32, 1, 1 << 20, false}}},
};

}  // namespace fusedlstm::cuda

namespace emulator {

// out: 1024 words, registered by the caller.
void run_selftest(const std::string& name, uint32_t* out) {
  const auto& test = fusedlstm::cuda::kCases.at(name);
  fusedlstm::cuda::launch(test.kernel, test.config, nullptr, out);
}

}  // namespace emulator
