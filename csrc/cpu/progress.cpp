#include "progress.h"

#include <thread>

#include "spin.h"

namespace fusedlstm::cpu {

void Progress::wait_for(int64_t steps) const {
  const auto is_there = [&] { return steps_.load(std::memory_order_acquire) >= steps; };
  const int64_t now = ticks(), patience = patience_since(met_, now);
  if (!is_there() && !spin(now, is_there)) {
    while (!is_there()) std::this_thread::yield();
    const int64_t waited = ticks() - now;
    if (waited > patience) late_ += waited;
  }
  met_ = ticks();
}

}  // namespace fusedlstm::cpu
