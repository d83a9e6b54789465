#include "team.h"

#include <sched.h>
#include <torch/csrc/stable/ops.h>

#include <atomic>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "memory.h"

namespace fusedlstm::cpu {
namespace {

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// A barrier that counts shares, not threads: torch's pool may give one thread several shares' worth of work, which
// then arrives once with their number. Spins for about as long as a time step may take, then yields the processor.
class Barrier {
 public:
  explicit Barrier(int shares) : shares(shares) {}
  void wait(int own) {
    const int phase = this->phase.load(std::memory_order_relaxed);
    if (arrived.fetch_add(own, std::memory_order_acq_rel) + own == shares) {
      arrived.store(0, std::memory_order_relaxed);
      this->phase.store(phase + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; this->phase.load(std::memory_order_acquire) == phase; ++spins) {
      if (spins < 4096) {
        pause();
      } else {
        sched_yield();
      }
    }
  }

 private:
  const int shares;
  alignas(64) std::atomic<int> arrived{0};
  alignas(64) std::atomic<int> phase{0};
};

}  // namespace

int pool_threads() {
  return static_cast<int>(torch::stable::get_num_threads());
}

void run_team(int threads, int64_t workspace_bytes, void (*body)(void*, Share, char*), void* context) {
  char* workspace = scratch_memory(workspace_bytes > 0 ? workspace_bytes : 64);
  Barrier barrier(threads);
  const auto meet = [](void* b, int own) { static_cast<Barrier*>(b)->wait(own); };
  if (threads == 1) {
    body(context, {0, 1, 1, &barrier, [](void*, int) {}}, workspace);
  } else {
    torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      body(context, {int(begin), int(end), threads, &barrier, meet}, workspace);
    });
  }
  release_scratch_memory();
}

}  // namespace fusedlstm::cpu
