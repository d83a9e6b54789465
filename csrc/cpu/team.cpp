#include "team.h"

#include <torch/csrc/stable/ops.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>

#include "memory.h"
#include "spin.h"
#include "tolerance.h"
#include "usable_cpus.h"

namespace fusedlstm::cpu {
namespace {

Tolerance tolerance;
Pause pause_of_teams;

// Where the shares of a call meet. Counts shares, not threads: a thread with several arrives once with their number.
// A waiting thread spins for about as long as a time step may take, then sleeps: a late one may need this very CPU.
class Team {
 public:
  Team(int shares, int threads, int last_meeting) : shares(shares), threads(threads), last_meeting(last_meeting) {}

  // Whether somebody came too late.
  bool was_slow() const { return is_slow.load(std::memory_order_relaxed); }

  // Somebody waited for so many ticks.
  void lose(int64_t waited) {
    const int64_t now = grow_tolerance();
    if (!tolerance.takes(waited, threads - 1) && !is_slow.exchange(true, std::memory_order_relaxed))
      pause_of_teams.begin(now);
  }

  // By the time since it was last called. Returns the time.
  int64_t grow_tolerance() {
    const int64_t now = ticks();
    tolerance.grow(now - counted.exchange(now, std::memory_order_relaxed));
    return now;
  }

  void meet(Share& own) {
    const int64_t now = ticks();
    const int64_t patience = patience_since(own.met, now);
    own.met = now;
    const int phase = this->phase.load(std::memory_order_relaxed);
    if (arrived.fetch_add(own.last - own.first, std::memory_order_acq_rel) + own.last - own.first == shares) {
      arrived.store(0, std::memory_order_relaxed);
      dissolved = was_slow() || phase + 1 == last_meeting;
      // Sequentially consistent, so that notify_all does not look for sleepers before the new phase can be seen: a
      // thread that goes to sleep in between would never be woken.
      this->phase.store(phase + 1, std::memory_order_seq_cst);
      this->phase.notify_all();
    } else if (!spin(now, [&] { return this->phase.load(std::memory_order_acquire) != phase; })) {
      this->phase.wait(phase, std::memory_order_acquire);
      const int64_t waited = ticks() - now;
      if (waited > patience) lose(waited);
    }
    if (!dissolved) return;
    if (own.first > 0) own.first = shares;
    own.last = shares;
    own.team = nullptr;
  }

 private:
  const int shares, threads, last_meeting;
  std::atomic<int64_t> counted{ticks()};  // when the tolerance last grew
  bool dissolved = false;  // written by the last to arrive, before the others leave; nobody meets after it is true
  std::atomic<bool> is_slow{false};
  alignas(64) std::atomic<int> arrived{0};
  alignas(64) std::atomic<int> phase{0};
};

// Whether torch's pool can be used: its threads stay with the process whose teams ran first. In one that is forked from
// that, the pool would wait for them for ever.
bool is_pool_here() {
  static std::atomic<pid_t> owner{0};
  const pid_t own = getpid();
  pid_t before = 0;
  return owner.compare_exchange_strong(before, own, std::memory_order_relaxed) || before == own;
}

// The calls of this process that are under way. A team whose threads do not all run at once meets at the pace of the
// scheduler: so the CPUs are divided by the calls that ran at the same time of late, and no call waits for another.
class Callers {
 public:
  // How many threads a call may have that can use `wanted`.
  int enter(int wanted) {
    const int now = calls.fetch_add(1, std::memory_order_relaxed) + 1;
    const bool is_alone = wanted == 1 || (!insists && pause_of_teams.is_on(ticks())) || !is_pool_here();
    const int threads = is_alone ? 1 : free_cpus(now, wanted);
    this->threads.fetch_add(threads, std::memory_order_relaxed);
    return threads;
  }
  void leave(int threads) {
    this->threads.fetch_sub(threads, std::memory_order_relaxed);
    calls.fetch_sub(1, std::memory_order_relaxed);
  }
  void insist(bool is_so) { insists = is_so; }

 private:
  static constexpr int kLately = 64;  // calls
  std::atomic<bool> insists{false};
  std::atomic<int> calls{0}, threads{0};            // now
  std::atomic<int> most_at_once{1}, since_most{0};  // calls of late, and calls since there were so many

  int free_cpus(int now, int wanted) {
    if (insists) return wanted;
    if (now >= most_at_once.load(std::memory_order_relaxed) || since_most.fetch_add(1) > kLately) {
      most_at_once.store(now, std::memory_order_relaxed);
      since_most.store(0, std::memory_order_relaxed);
    }
    const int cpus = usable_cpus(), fair = cpus / most_at_once.load(std::memory_order_relaxed);
    return std::clamp(std::min(fair, cpus - threads.load(std::memory_order_relaxed)), 1, wanted);
  }
};

Callers callers;

}  // namespace

int pool_threads() {
  return static_cast<int>(torch::stable::get_num_threads());
}

void insist_on_threads(bool is_so) {
  callers.insist(is_so);
}

void Share::meet() {
  if (team) static_cast<Team*>(team)->meet(*this);
}

void Share::lose(int64_t waited) const {
  if (team && waited > 0) static_cast<Team*>(team)->lose(waited);
}

void run_team(int shares, int last_meeting, int64_t workspace_bytes, void (*body)(void*, Share, char*), void* context) {
  const Scratch workspace(workspace_bytes);
  const int threads = callers.enter(shares);
  if (threads == 1) {
    body(context, {0, shares, shares, nullptr}, workspace.data());
  } else {
    Team team(shares, threads, last_meeting);
    torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      body(context, {int(shares * begin / threads), int(shares * end / threads), shares, &team}, workspace.data());
    });
    team.grow_tolerance();
    if (!team.was_slow()) pause_of_teams.shorten();
  }
  callers.leave(threads);
}

}  // namespace fusedlstm::cpu
