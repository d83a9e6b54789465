#include "team.h"

#include <sched.h>
#include <sys/mman.h>
#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

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

// Scratch memory of a thread: kept between calls up to a size that small, frequent calls need, so that they neither
// allocate nor touch new pages; larger blocks are returned at once.
class Scratch {
 public:
  static constexpr int64_t kKeep = int64_t(16) << 20;
  static constexpr int64_t kHugePage = int64_t(2) << 20;
  char* get(int64_t bytes) {
    if (bytes > capacity) {
      memory.reset();
      capacity = 0;
      // Huge pages for large blocks: fewer faults on first touch, fewer TLB misses in strided reads.
      const int64_t page = bytes >= 2 * kHugePage ? kHugePage : 64;
      const size_t rounded = size_t((bytes + page - 1) / page * page);
      memory.reset(static_cast<char*>(std::aligned_alloc(size_t(page), rounded)));
      if (!memory) throw std::bad_alloc();
      if (page == kHugePage) madvise(memory.get(), rounded, MADV_HUGEPAGE);
      capacity = bytes;
    }
    return memory.get();
  }
  void release() {
    if (capacity <= kKeep) return;
    memory.reset();
    capacity = 0;
  }

 private:
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  std::unique_ptr<char, Free> memory;
  int64_t capacity = 0;
};

}  // namespace

int pool_threads() { return static_cast<int>(torch::stable::get_num_threads()); }

void run_team(int threads, int64_t workspace_bytes, void (*body)(void*, Share, char*), void* context) {
  thread_local Scratch scratch;
  char* workspace = scratch.get(workspace_bytes > 0 ? workspace_bytes : 64);
  Barrier barrier(threads);
  const auto meet = [](void* b, int own) { static_cast<Barrier*>(b)->wait(own); };
  if (threads == 1) {
    body(context, {0, 1, 1, &barrier, [](void*, int) {}}, workspace);
  } else {
    torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      body(context, {int(begin), int(end), threads, &barrier, meet}, workspace);
    });
  }
  scratch.release();
}

}  // namespace fusedlstm::cpu
