// The state of a launch, shared by the emulator's source files.
#pragma once
#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cuda/device/primitives.cuh"

namespace emulator {

using fusedlstm::cuda::LaunchConfig;

// ---- order of events: vector clocks ---------------------------------------------------------------------------------
// A thread's events are numbered by its epoch, which advances when it hands its knowledge on. A clock says up to which
// epoch of every thread the events are known to have happened; a thread knows its own ones in any case.

using Clock = std::vector<uint32_t>;
using ClockRef = std::shared_ptr<const Clock>;

struct Stamp {  // what one thread knew at one moment
  ClockRef known;
  uint32_t thread, epoch;
};

ClockRef join(const std::vector<Stamp>& stamps, const ClockRef& also = nullptr);

// ---- memory, regions.cpp --------------------------------------------------------------------------------------------

// An access remembered in shadow memory. bytes: mask within the word; 0: none. What has few bits is one number by hand:
// a processor that writes a byte of it and then reads all waits, which was a third of the time of a check.
class Event {
 public:
  Event() = default;
  Event(uint32_t epoch, uint32_t site, uint32_t thread, uint32_t bytes = 0, bool relaxed = false)
      : epoch(epoch), site(site), rest_(thread << 5 | bytes << 1 | uint32_t{relaxed}) {}
  uint32_t thread() const { return rest_ >> 5; }
  uint32_t bytes() const { return rest_ >> 1 & 0xF; }
  bool relaxed() const { return rest_ & 1; }
  void forget(uint32_t bytes) { rest_ &= ~(bytes << 1); }

  uint32_t epoch = 0, site = 0;

 private:
  uint32_t rest_ = 0;
};

// Of 4 bytes; the masks have one bit per byte. What most accesses need is in front.
struct ShadowWord {
  uint32_t since;  // what it says is of this moment of its region; of an earlier one, only `initialised` counts
  uint8_t initialised, in_flight, written, copied;
  Event writes[2], reads[4];
  Event copies[2];  // reads by bulk copies; none unless `copied`
};

struct Cta;

struct Region {
  Region(uintptr_t begin, size_t bytes, std::string name, Cta* owner, bool track_initialised);
  ~Region();
  Region(const Region&) = delete;
  bool contains(uintptr_t address) const { return address >= begin && address < end; }
  size_t index(uintptr_t address) const { return address / 4 - begin / 4; }
  size_t word_count() const { return (end + 3) / 4 - begin / 4; }
  ShadowWord& shadow(uintptr_t address) {
    const size_t i = index(address);
    used_[i / kBlock] = 1;
    ShadowWord& word = words_[i];
    if (word.since != since_)
      word = {.since = since_, .initialised = word.since < born_ ? uint8_t{0} : word.initialised};
    return word;
  }
  // Calls visit(address, word) for all words that were accessed since accesses were forgotten.
  template <class Visit>
  void for_each_accessed(const Visit& visit) {
    for (size_t block = 0; block < used_.size(); ++block) {
      if (!used_[block]) continue;
      const size_t end = std::min(word_count(), (block + 1) * kBlock);
      for (size_t i = block * kBlock; i < end; ++i)
        if (words_[i].since == since_) visit(4 * (begin / 4 + i), words_[i]);
    }
  }
  void forget_accesses();

  uintptr_t begin, end;
  std::string name;
  Cta* owner;  // of shared memory
  bool track_initialised;
  bool dead = false;  // the CTA has exited
  size_t late = 0;    // words of relaxed stores that others do not see yet

 private:
  static constexpr size_t kBlock = 32;  // words

  ShadowWord* words_;          // in which there may be what came before the region
  std::vector<uint8_t> used_;  // by block
  uint32_t born_, since_;      // moments: of all regions, there are no two alike
};

Region* find_region(uintptr_t address);
Region* region_at(uintptr_t address);         // as find_region, by the current thread
void forget_accesses();                       // a launch is ordered after everything before it
std::string regions_near(uintptr_t address);  // ", 4 bytes past the end of x", of each
void add_region(Region* region);
void remove_region(Region* region);

// ---- threads, barriers, CTAs ----------------------------------------------------------------------------------------

enum class State : uint8_t { kReady, kBlocked, kSpinning, kDone };

// Kernels take up to 19 KiB, and to clear what none takes would be most of the time of a launch of many threads. Not a
// multiple of a page: the ends of the stacks would share a few lines of the caches.
constexpr size_t kStackBytes = (40 << 10) + 5 * 64;

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  uint3 thread{};
  uint32_t index = 0, id = 0;  // within the CTA, within the grid
  Cta* cta = nullptr;
  State state = State::kReady;
  const char* waits_for = "";
  Site site;
  ClockRef known;
  uint32_t epoch = 1, async_epoch = 0;
  Stamp at_fence{};                 // its last one; without `known` where it has had none
  std::vector<Stamp> seen;          // since its last fence: of whose relaxed stores it read, their last fences before
  std::vector<uintptr_t> polled;    // addresses of relaxed loads since it last gave way
  std::vector<uintptr_t> unfenced;  // mbarriers it initialised, without a fence so far
  std::vector<uint32_t> proxy_fences;  // epochs that end with a bulk_copy_fence
};

struct Barrier {
  Site site;  // of the first arrival
  std::vector<Fiber*> waiting;
  std::vector<Stamp> arrived;
};

struct Cta;
struct MBarrier {
  const Cta* owner = nullptr;
  int arrivals = 0, pending = 0;
  long bytes = 0;  // expected minus landed
  int parity = 0;
  bool fenced = false;
  std::vector<Stamp> arrived;
  ClockRef released,
      released_in_block;  // knowledge of the phases so far: everybody's, and that of the CTA's own threads
  std::vector<Fiber*> waiting;
};

struct WarpOp {
  const char* what = nullptr;
  Site site;
  void* operands[32];
  std::vector<Fiber*> arrived;
};

struct Cluster;
struct Cta {
  uint3 block{};
  uint32_t first_thread = 0;
  int rank = 0;
  Cluster* cluster = nullptr;
  std::unique_ptr<Region> shared;
  std::vector<Fiber*> fibers;
  std::vector<WarpOp> warps;
  Barrier barrier;
  std::map<uintptr_t, MBarrier> mbarriers;
  size_t exited = 0;
  bool started = false;
};

struct Cluster {
  std::vector<std::unique_ptr<Cta>> ctas;
  Barrier barrier;
};

// A store or a bulk copy that other threads do not see yet.
struct LateStore {
  uintptr_t address;
  unsigned char value[16];
  uint32_t bytes;
  Stamp sender;             // for store_async and bulk_copy: the epoch of its asynchronous accesses
  uintptr_t mbarrier = 0;   // 0: a relaxed store of one word
  Stamp at_fence{};         // the sender's last one before a relaxed store
  bool overwrites = false;  // what the launch has written there before
  uintptr_t from = 0;       // a bulk copy: what is there when it lands
};

// The relaxed stores to one word that are late.
struct LateWord {
  int count = 0;
  uint32_t thread = 0, epoch = 0;  // of whom it is; no epoch where there is or was more than one
};

struct Machine {
  LaunchConfig config;
  std::string kernel_name;
  void (*entry)(void*) = nullptr;
  void* closure = nullptr;
  uintptr_t host_stack = 0;
  size_t thread_count = 0, clock_size = 0, live = 0;
  std::vector<std::unique_ptr<Cluster>> clusters;  // resident
  std::deque<Fiber*> ready;
  std::vector<Fiber*> spinning;
  std::vector<LateStore> late;  // in the order of issue
  std::unordered_map<uintptr_t, LateWord> late_words;
  std::unordered_map<uintptr_t, Stamp> fences;  // of the last relaxed store to this word: the sender's before it
  uint64_t progress = 0, wakes = 0, random = 0;
  uint32_t timer = 1;  // units of 4.3 s
  int minutes = 0;     // that have passed
  void* scheduler_stack_pointer = nullptr;
  std::string error;
  bool failed = false;
};

extern Machine* machine;     // the launch in progress
extern Fiber* current;       // the running CUDA thread; nullptr: the scheduler
extern bool in_kernel_code;  // instrumented code outside kernels is ignored

// Runtime code called by a CUDA thread: its own accesses are not the kernel's.
class RuntimeScope {
 public:
  RuntimeScope() : was_(in_kernel_code) { in_kernel_code = false; }
  ~RuntimeScope() { in_kernel_code = was_; }

 private:
  bool was_;
};

// ---- fibers.cpp
uint64_t random_bits();
// A thread of the launch in progress that has not started, with a stack; `known`: the events that come before it.
Fiber* new_fiber(Cta* cta, uint32_t index, const ClockRef& known);
void free_fiber(Fiber* fiber);
void run_resident();  // until all threads are done, or the launch has failed
void make_ready(Fiber* fiber);
void wake(std::vector<Fiber*>& fibers);              // and empties the list
void block(const char* waits_for, Site site);        // until somebody wakes it
void give_way(State state);                          // kReady or kSpinning: run others first
void run_others();                                   // the current thread's state is set
void abandon(const std::string& message);            // the launch ends as soon as the scheduler runs
[[noreturn]] void fail(const std::string& message);  // by the current thread: ends the launch at once
std::string name_of(const Fiber* fiber);
std::string thread_name(uint32_t id);
std::string text(Site site);
std::string actor_at(Site site);  // " by block(0,0,0) thread(1) (a.cuh:2)"

inline bool is_own_stack(const void* p) {
  return static_cast<size_t>(static_cast<const char*>(p) - current->stack) < kStackBytes;
}

// ---- sync.cpp
Stamp stamp(const Fiber* fiber);
void learn(Fiber* fiber, const ClockRef& clock);
void complete_if_due(MBarrier& mbarrier);

// ---- late_stores.cpp
bool deliver_some();  // false: there are none
void deliver_all();
void deliver_known_to(const Fiber* reader, uintptr_t address, size_t bytes);

// ---- check.cpp
inline bool knows(const Fiber* fiber, const uint32_t* known, const Event& event) {
  return event.thread() == fiber->id || known[event.thread()] >= event.epoch;
}
inline bool knows(const Fiber* fiber, const Event& event) {
  return knows(fiber, fiber->known->data(), event);
}
uint32_t site_id(Site site);
std::string site_text(uint32_t id);
void check_access(uintptr_t address, size_t bytes, Access access, uint32_t site);
// Checks and records one access. `as`: by whom, the current thread or its asynchronous accesses.
void check(uintptr_t address, size_t bytes, Access access, uint32_t site, const Event& as);
std::string place(const Region& region, uintptr_t address);
// Says that it was the current thread, and where.
[[noreturn]] void fail_at(uint32_t site, const std::string& what);
void check_exit(Cta* cta);  // all accesses by peers are over

}  // namespace emulator
