// Threads as fibers: stacks, switching, the scheduler, and the report when nothing can run.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <sstream>

#include "machine.h"

namespace emulator {

Machine* machine = nullptr;
Fiber* current = nullptr;
bool in_kernel_code = false;

Options& options() {
  static Options value;
  return value;
}

bool fault_is_on(int fault) {
  return options().fault == fault;
}

// ---- stacks and switching -------------------------------------------------------------------------------------------

// void emulator_switch(void** save, void* to): saves the registers a callee must keep on this stack, its address in
// *save, and goes on with the stack `to`. ucontext would do, with a system call for each switch.
#ifndef __x86_64__
#error "the emulator switches stacks in x86-64 assembly"
#endif
extern "C" void emulator_switch(void** save, void* to);
asm(R"(
.text
.globl emulator_switch
.type emulator_switch,@function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch,.-emulator_switch
)");

namespace {

std::vector<char*> free_stacks;

// Many stacks in one mapping, since a process may have some 65,000 of them only. There are no guard pages then: what
// a kernel writes below its own stack is outside every buffer, and reported as such.
char* take_stack() {
  constexpr size_t kAtOnce = 256, kInHugePages = 8192;
  static size_t mapped = 0;
  if (free_stacks.empty()) {
    const size_t bytes = kAtOnce * kStackBytes;
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw Error("no memory for the stacks of the emulated threads");
    // Thousands of threads take turns: the TLB has no room for a page of each. Of tens of thousands, to clear all that
    // nobody touches would cost more.
    if (mapped < kInHugePages) madvise(p, bytes, MADV_HUGEPAGE);
    mapped += kAtOnce;
    for (size_t i = 0; i < kAtOnce; ++i) free_stacks.push_back(static_cast<char*>(p) + i * kStackBytes);
  }
  char* stack = free_stacks.back();
  free_stacks.pop_back();
  return stack;
}

void switch_to(Fiber* to) {  // nullptr: the scheduler
  Fiber* from = current;
  if (from == to) return;
  current = to;
  if (to) to->cta->started = true;
  emulator_switch(from ? &from->stack_pointer : &machine->scheduler_stack_pointer,
                  to ? to->stack_pointer : machine->scheduler_stack_pointer);
}

Fiber* next_ready() {
  auto& ready = machine->ready;
  if (machine->failed || ready.empty()) return nullptr;
  constexpr uint64_t kOneIn = 8;  // of the 32 lanes of a warp some wait for their turn
  if (options().seed >= 2 && random_bits() % kOneIn == 0) std::swap(ready.front(), ready[random_bits() % ready.size()]);
  Fiber* fiber = ready.front();
  ready.pop_front();
  return fiber;
}

void exit_thread() {
  Fiber* me = current;
  Cta* cta = me->cta;
  if (!cta->barrier.waiting.empty())
    fail("divergent barrier: " + name_of(me) + " exits while " + std::to_string(cta->barrier.waiting.size()) +
         " threads wait at block_sync (" + text(cta->barrier.site) + ")");
  if (WarpOp& op = cta->warps[me->index / 32]; op.what)
    fail("divergent warp: " + name_of(me) + " exits while other lanes are at " + op.what + " (" + text(op.site) + ")");
  me->state = State::kDone;
  ++machine->progress;
  --machine->live;
  if (++cta->exited == cta->fibers.size()) check_exit(cta);
}

void fiber_main() {
  in_kernel_code = true;
  machine->entry(machine->closure);
  in_kernel_code = false;
  exit_thread();
  switch_to(next_ready());
  std::abort();  // nobody resumes a thread that is done
}

}  // namespace

Fiber* new_fiber(Cta* cta, uint32_t index, const ClockRef& known) {
  const dim3 block = machine->config.block;
  auto* fiber = new Fiber;
  fiber->stack = take_stack();
  fiber->cta = cta;
  fiber->index = index;
  fiber->id = cta->first_thread + index;
  fiber->thread = uint3{index % block.x, index / block.x % block.y, index / block.x / block.y};
  fiber->known = known;
  void** top = reinterpret_cast<void**>(fiber->stack + kStackBytes);
  *--top = nullptr;  // as if fiber_main had been called: its stack pointer is 8 modulo 16
  *--top = reinterpret_cast<void*>(&fiber_main);
  for (int i = 0; i < 6; ++i) *--top = nullptr;  // the registers emulator_switch restores
  fiber->stack_pointer = top;
  return fiber;
}

void free_fiber(Fiber* fiber) {
  free_stacks.push_back(fiber->stack);
  delete fiber;
}

void run_others() {
  constexpr size_t kOfReport = 12 << 10;  // that the report of a fault may take
  if (!is_own_stack(static_cast<char*>(__builtin_frame_address(0)) - kOfReport))
    fail(name_of(current) + " takes more stack than the emulator has for it, " +
         std::to_string(kStackBytes - kOfReport) + " bytes");
  const uint64_t kOneIn = 32;  // with a random schedule, stores may also land while others run
  if (options().seed >= 2 && !machine->late.empty() && random_bits() % kOneIn == 0) deliver_some();
  switch_to(next_ready());
}

uint64_t random_bits() {  // xorshift64*
  uint64_t& x = machine->random;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return (x * 0x2545F4914F6CDD1D) >> 8;
}

void make_ready(Fiber* fiber) {
  fiber->state = State::kReady;
  machine->ready.push_back(fiber);
}

void wake(std::vector<Fiber*>& fibers) {
  if (options().seed == 1) std::reverse(fibers.begin(), fibers.end());
  for (Fiber* fiber : fibers) fiber->state = State::kReady;
  // Before all others: a warp, and a CTA, goes on while its stacks are in the cache. Thousands that take turns would be
  // fetched from memory at each switch. Now and then behind them: a warp may wait for others in a loop that is none of
  // relaxed loads.
  constexpr uint64_t kOneIn = 64;
  auto& ready = machine->ready;
  ready.insert(++machine->wakes % kOneIn ? ready.begin() : ready.end(), fibers.begin(), fibers.end());
  fibers.clear();
}

void block(const char* waits_for, Site site) {
  current->state = State::kBlocked;
  current->waits_for = waits_for;
  current->site = site;
  run_others();
}

void give_way(State state) {
  if (state == State::kReady) {
    make_ready(current);
  } else {
    current->state = state;
    machine->spinning.push_back(current);
  }
  run_others();
}

void abandon(const std::string& message) {
  if (machine->failed) return;  // the first fault counts
  machine->error = machine->kernel_name + ": " + message;
  machine->failed = true;
}

void fail(const std::string& message) {
  in_kernel_code = false;
  abandon(message);
  for (;;) switch_to(nullptr);  // never resumed: the launch is over
}

uint32_t timer_high() {
  return machine->timer;
}

void give_up(const char* text, const char* kernel, Site site) {
  fail(std::string(kernel) + ": " + text + actor_at(site));
}

// ---- names ----------------------------------------------------------------------------------------------------------

std::string thread_name(uint32_t id) {
  const dim3 grid = machine->config.grid, block = machine->config.block;
  const uint32_t threads = block.x * block.y * block.z, b = id / threads, t = id % threads;
  std::ostringstream s;
  s << "block(" << b % grid.x << "," << b / grid.x % grid.y << "," << b / grid.x / grid.y << ") thread(" << t % block.x;
  if (block.y * block.z > 1) s << "," << t / block.x % block.y << "," << t / block.x / block.y;
  s << ")";
  return s.str();
}

std::string name_of(const Fiber* fiber) {
  return thread_name(fiber->id);
}

std::string text(Site site) {
  const char* slash = strrchr(site.file_name(), '/');
  return std::string(slash ? slash + 1 : site.file_name()) + ":" + std::to_string(site.line());
}

std::string actor_at(Site site) {
  return " by " + name_of(current) + " (" + text(site) + ")";
}

// ---- the scheduler --------------------------------------------------------------------------------------------------

namespace {

// Who waits for what, threads in the same position together.
std::string stuck_report(const char* what) {
  std::map<std::string, std::vector<const Fiber*>> groups;
  for (auto& cluster : machine->clusters)
    for (auto& cta : cluster->ctas)
      for (Fiber* fiber : cta->fibers) {
        std::string key = "exited";
        if (fiber->state == State::kBlocked) key = std::string("waiting at ") + fiber->waits_for;
        if (fiber->state == State::kSpinning) key = "polling memory";
        if (fiber->state != State::kDone) key += " (" + text(fiber->site) + ")";
        groups[key].push_back(fiber);
      }
  std::string report = what;
  for (auto& [key, fibers] : groups)
    report += "\n  " + key + ": " + std::to_string(fibers.size()) + " threads, e.g. " + name_of(fibers.front());
  return report;
}

// A minute, if the options say so: whoever waits for an mbarrier looks at the clock. False: no more of them.
bool let_time_pass() {
  constexpr uint32_t kMinute = 14;
  if (!options().time_passes || machine->minutes == 2) return false;
  ++machine->minutes;
  machine->timer += kMinute;
  for (auto& cluster : machine->clusters)
    for (auto& cta : cluster->ctas)
      for (auto& [address, mbarrier] : cta->mbarriers) wake(mbarrier.waiting);
  return true;
}

}  // namespace

void run_resident() {
  constexpr int kIdleRounds = 20;  // polling threads only, and nothing else happens
  int idle = 0;
  uint64_t seen = 0;
  while (machine->live && !machine->failed) {
    if (Fiber* fiber = next_ready()) {
      switch_to(fiber);
      continue;
    }
    deliver_some();
    if (machine->failed) return;
    if (machine->spinning.empty() && machine->ready.empty()) {
      if (!machine->late.empty() || let_time_pass()) continue;
      abandon(stuck_report("deadlock"));
      return;
    }
    idle = machine->progress == seen ? idle + 1 : 0;
    seen = machine->progress;
    if (idle > kIdleRounds && let_time_pass()) idle = 0;
    if (idle > kIdleRounds) {
      abandon(stuck_report("livelock, only polling threads run"));
      return;
    }
    wake(machine->spinning);
  }
}

}  // namespace emulator
