// How far a layer has come, for one that runs beside it and reads what it makes.
#pragma once

#include <atomic>
#include <cstdint>

namespace fusedlstm::cpu {

class Progress {
 public:
  // So many time steps are done: whoever sees it sees what they wrote. Called by one thread, with growing numbers.
  void reach(int64_t steps) { steps_.store(steps, std::memory_order_release); }

  // Returns when so many are done. Called by one other thread. It lets others run meanwhile: the thread that does them
  // may need this very CPU.
  void wait_for(int64_t steps) const;
  // Ticks (spin.h) that it waited where no time step takes as long.
  int64_t late() const { return late_; }

 private:
  alignas(64) std::atomic<int64_t> steps_{0};
  alignas(64) mutable int64_t met_ = 0, late_ = 0;  // when the other thread last came here
};

}  // namespace fusedlstm::cpu
