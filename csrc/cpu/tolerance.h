// When threads that meet in every time step are no longer worth their waiting, and when they are again. Told the time,
// in ticks of spin.h.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace fusedlstm::cpu {

// The waiting for late threads that the teams of this process put up with before they dissolve. It grows with the time
// that teams run, and is far from what would make one thread as fast as two: a machine whose host takes a CPU away for
// 10 or 20 ms now and then uses little of it; another process on the same CPUs, which comes at every step, uses it up.
class Tolerance {
 public:
  // After one of `waiting` threads, all but one of a team, lost so many ticks: whether that was still tolerable.
  bool takes(int64_t lost, int waiting) {
    lost /= waiting;  // all lose the same for one that is late
    return left.fetch_sub(lost, std::memory_order_relaxed) >= lost;
  }

  // After a team ran for `elapsed` ticks more.
  void grow(int64_t elapsed) {
    const int64_t now = std::max<int64_t>(left.load(std::memory_order_relaxed), 0);
    left.store(std::min(now + elapsed / kShare, kMost), std::memory_order_relaxed);
  }

 private:
  static constexpr int64_t kMost = 1 << 26;  // ticks: 13 to 34 ms
  static constexpr int64_t kShare = 4;       // of the time, one part may be lost
  std::atomic<int64_t> left{kMost};
};

// After a team had to dissolve, since other processes used its CPUs, calls have none for a while. A while in time and
// not in calls: it costs calls of any length as little, and ends soon after the other processes do. It is twice as long
// as the one before, unless teams had been well since.
class Pause {
 public:
  bool is_on(int64_t now) const { return now < end.load(std::memory_order_relaxed); }

  void begin(int64_t now) {
    const int64_t next = std::clamp(2 * length.load(std::memory_order_relaxed), kLeast, kMost);
    length.store(next, std::memory_order_relaxed);
    end.store(now + next, std::memory_order_relaxed);
  }

  // After a call of a team that did not dissolve.
  void shorten() {
    const int64_t last = length.load(std::memory_order_relaxed);
    if (last > 0) length.store(last / 2, std::memory_order_relaxed);
  }

 private:
  static constexpr int64_t kLeast = 1 << 26, kMost = int64_t(1) << 31;  // ticks: 13 to 34 ms, 0.4 to 1.1 s
  std::atomic<int64_t> length{0}, end{0};
};

}  // namespace fusedlstm::cpu
