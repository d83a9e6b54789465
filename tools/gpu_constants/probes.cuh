// What measurements need of the GPU beyond csrc/cuda/device/primitives.cuh: a clock that also ends waits, and
// an instruction that no kernel of the product has.
#pragma once
#include "cuda/device/primitives.cuh"

namespace fusedlstm::cuda {

// Of one kernel: counts cycles, and says when its threads have waited too long for each other. Then none waits any
// more, and all go on to the end: they still meet at the same barriers, and the kernel is over.
class Stopwatch {
 public:
  static constexpr long long kMostCycles = 1 << 27;  // about 80 ms

  __device__ __forceinline__ Stopwatch() {
    block_sync();
    start_ = clock64();
  }
  __device__ __forceinline__ bool is_late() {
    if (!late_) late_ = clock64() - start_ > kMostCycles;
    return late_;
  }
  // Whether it was late when a thread waited.
  __device__ __forceinline__ bool gave_up() const { return late_; }
  template <class Ready>
  __device__ __forceinline__ void wait_until(Ready ready) {
    while (!late_ && !ready()) (void)is_late();
  }
  // Writes the cycles since the start, negative if it was too late; of the grid's first CTA.
  __device__ __forceinline__ void stop(long long* cycles) {
    block_sync();
    if (threadIdx.x == 0 && blockIdx.x == 0) *cycles = is_late() ? -1 : clock64() - start_;
  }

 private:
  long long start_;
  bool late_ = false;
};

// The SM that the CTA runs on.
__device__ __forceinline__ uint32_t sm_id() {
  uint32_t id;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(id));
  return id;
}

}  // namespace fusedlstm::cuda
