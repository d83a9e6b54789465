// Waiting for another thread without giving up the processor, for a while.
#pragma once

#include <chrono>
#include <cstdint>
#include <limits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fusedlstm::cpu {

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Time in units of 0.2 to 0.5 ns, for a thousandth of what reading a clock costs a short time step.
inline int64_t ticks() {
#if defined(__x86_64__)
  return int64_t(__rdtsc());
#else
  return 2 * std::chrono::steady_clock::now().time_since_epoch().count();
#endif
}

constexpr int64_t kSpin = 1 << 18;      // ticks of waiting before a thread sleeps: 50 to 130 us
constexpr int64_t kPatience = 1 << 19;  // ticks beyond which nobody may be late, unless time steps take that long

// How many ticks a thread that comes now and came before at `met` may have to wait for another one with such work. The
// first time (0) that one may have to wake up, or to do its first work.
constexpr int64_t patience_since(int64_t met, int64_t now) {
  return met == 0 ? std::numeric_limits<int64_t>::max() : kPatience + 2 * (now - met);
}

// Whether is_there() became true while there was hope that it soon would.
template <class IsThere>
bool spin(int64_t since, IsThere is_there) {
  do {
    for (int i = 0; i < 32; ++i) {
      if (is_there()) return true;
      pause();
    }
  } while (ticks() - since < kSpin);
  return false;
}

}  // namespace fusedlstm::cpu
