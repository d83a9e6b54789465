// Teams of threads on a clock of its own: prints, in ms, when they dissolve and how long they pause.
#include <cstdint>
#include <cstdio>

#include "cpu/tolerance.h"

namespace {

using fusedlstm::cpu::Pause;
using fusedlstm::cpu::Tolerance;

constexpr int64_t kMs = 2'500'000;  // ticks

// What teams have lost when one dissolves that runs for `every` ms before a thread is `late` ms late, again and again
// for a minute; -1 if none does.
int lost_until_dissolved(int threads, int every, int late) {
  Tolerance tolerance;
  for (int time = 0, lost = 0; time < 60'000; time += every + late) {
    tolerance.grow((every + late) * kMs);
    lost += late;
    for (int thread = 1; thread < threads; ++thread)
      if (!tolerance.takes(late * kMs, threads - 1)) return lost;
  }
  return -1;
}

// How long a pause is that begins at `now`.
int length_of_pause(Pause& pause, int64_t now) {
  pause.begin(now);
  int ms = 0;
  while (pause.is_on(now + ms * kMs)) ++ms;
  return ms;
}

}  // namespace

int main() {
  for (const int threads : {2, 8})
    std::printf("host %d, neighbour %d\n", lost_until_dissolved(threads, 110, 20), lost_until_dissolved(threads, 4, 4));
  Tolerance indebted;
  indebted.takes(10'000 * kMs, 1);
  indebted.grow(100 * kMs);
  std::printf("after a loss of 10 s takes %d\n", indebted.takes(20 * kMs, 1));
  Pause pause;
  std::printf("pauses");
  for (int i = 0; i < 7; ++i) std::printf(" %d", length_of_pause(pause, i * 3000 * kMs));
  pause.shorten();
  pause.shorten();
  std::printf(", after two good calls %d\n", length_of_pause(pause, 30'000 * kMs));
}
