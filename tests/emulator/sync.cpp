// Barriers, warp operations, clusters and mbarriers: who waits for whom, and what they know afterwards.
#include <algorithm>
#include <cstring>

#include "machine.h"

namespace emulator {

// ---- clocks ---------------------------------------------------------------------------------------------------------

ClockRef join(const std::vector<Stamp>& stamps, const ClockRef& also) {
  const Clock* first = stamps.front().known.get();
  auto result = std::make_shared<Clock>(*first);
  const Clock* merged = first;  // threads that met before share one clock
  auto merge = [&](const Clock* clock) {
    if (clock == merged) return;
    for (size_t i = 0; i < result->size(); ++i) (*result)[i] = std::max((*result)[i], (*clock)[i]);
    merged = clock;
  };
  for (const Stamp& s : stamps)
    if (s.known.get() != first) merge(s.known.get());
  if (also) merge(also.get());
  for (const Stamp& s : stamps) (*result)[s.thread] = std::max((*result)[s.thread], s.epoch);
  return result;
}

Stamp stamp(const Fiber* fiber) {
  return Stamp{fiber->known, fiber->id, fiber->epoch};
}

void learn(Fiber* fiber, const ClockRef& clock) {
  // The threads of a CTA learn the same from the same state: compute it once.
  static ClockRef last_before, last_clock, last_after;
  if (!clock || fiber->known == clock) return;
  if (fiber->known != last_before || clock != last_clock) {
    auto result = std::make_shared<Clock>(*fiber->known);
    for (size_t i = 0; i < result->size(); ++i) (*result)[i] = std::max((*result)[i], (*clock)[i]);
    last_before = fiber->known;
    last_clock = clock;
    last_after = result;
  }
  fiber->known = last_after;
}

// ---- barriers of a CTA and of a cluster -----------------------------------------------------------------------------

namespace {

constexpr const char *kBlockSync = "block_sync", *kClusterSync = "cluster_sync";

void complete(Barrier& barrier) {
  ++machine->progress;
  const ClockRef known = join(barrier.arrived);
  barrier.arrived.clear();
  for (Fiber* fiber : barrier.waiting) {
    fiber->known = known;
    ++fiber->epoch;
    fiber->polled.clear();
  }
  wake(barrier.waiting);
}

void arrive_and_wait(Barrier& barrier, size_t expected, const char* what, Site site) {
  if (barrier.arrived.empty()) barrier.site = site;
  barrier.arrived.push_back(stamp(current));
  barrier.waiting.push_back(current);
  if (barrier.arrived.size() == expected) {
    complete(barrier);
    current->state = State::kReady;
    run_others();
  } else {
    block(what, site);
  }
}

}  // namespace

void block_sync(Site site) {
  RuntimeScope scope;
  Cta* cta = current->cta;
  Barrier& barrier = cta->barrier;
  const auto refuse = [&](const std::string& why) {
    fail("divergent barrier: " + name_of(current) + " is at block_sync (" + text(site) + ") " + why);
  };
  if (cta->exited) refuse("but " + std::to_string(cta->exited) + " threads of its CTA have exited");
  const Site first = barrier.site;
  if (!barrier.waiting.empty() && (first.line() != site.line() || strcmp(first.file_name(), site.file_name())))
    refuse("while " + std::to_string(barrier.waiting.size()) + " threads wait at block_sync (" + text(first) + ")");
  arrive_and_wait(barrier, cta->fibers.size(), kBlockSync, site);
}

void cluster_sync(Site site) {
  RuntimeScope scope;
  Cluster* cluster = current->cta->cluster;
  const size_t threads = cluster->ctas.size() * current->cta->fibers.size();
  arrive_and_wait(cluster->barrier, threads, kClusterSync, site);
}

// ---- warps ----------------------------------------------------------------------------------------------------------

void warp_collective(const char* what, void* operands, void (*compute)(void* const*), Site site) {
  RuntimeScope scope;
  WarpOp& op = current->cta->warps[current->index / 32];
  if (!op.what) {
    op.what = what;
    op.site = site;
  } else if ((op.what != what && strcmp(op.what, what)) || op.site.line() != site.line()) {
    fail("divergent warp: " + name_of(current) + " is at " + what + " (" + text(site) + ") while other lanes are at " +
         op.what + " (" + text(op.site) + ")");
  }
  op.operands[lane_index()] = operands;
  op.arrived.push_back(current);
  if (op.arrived.size() < 32) {
    if (current->cta->exited && current->cta->fibers[current->index / 32 * 32]->state == State::kDone)
      fail(std::string("divergent warp: ") + name_of(current) + " is at " + what + " (" + text(site) +
           ") but lanes of its warp have exited");
    block(what, site);
    return;
  }
  compute(op.operands);
  op.what = nullptr;
  wake(op.arrived);
  current->state = State::kReady;
  run_others();
}

void warp_sync(Site site) {
  static constexpr const char* kWarpSync = "warp_sync";
  warp_collective(
      kWarpSync, current,
      [](void* const* lanes) {
        std::vector<Stamp> stamps;
        for (int l = 0; l < 32; ++l) stamps.push_back(stamp(static_cast<Fiber*>(lanes[l])));
        const ClockRef known = join(stamps);
        for (int l = 0; l < 32; ++l) {
          static_cast<Fiber*>(lanes[l])->known = known;
          ++static_cast<Fiber*>(lanes[l])->epoch;
        }
      },
      site);
}

// ---- clusters -------------------------------------------------------------------------------------------------------

int cluster_rank() {
  return current->cta->rank;
}
int cluster_size() {
  return static_cast<int>(current->cta->cluster->ctas.size());
}

uintptr_t map_cluster_address(uintptr_t address, int rank, Site site) {
  RuntimeScope scope;
  const Cta* cta = current->cta;
  if (rank < 0 || rank >= cluster_size())
    fail("map_cluster_address to rank " + std::to_string(rank) + " of " + std::to_string(cluster_size()) +
         actor_at(site));
  if (!cta->shared || address < cta->shared->begin || address >= cta->shared->end)
    fail("map_cluster_address of an address outside the CTA's shared memory" + actor_at(site));
  return cta->cluster->ctas[rank]->shared->begin + (address - cta->shared->begin);
}

// ---- mbarriers ------------------------------------------------------------------------------------------------------

namespace {

// The barrier object counts as memory that its initialisation writes and that every use reads.
void touch(uintptr_t barrier, bool initialise, Site site) {
  check_access(barrier, 8, initialise ? Access::kWrite : Access::kRelaxedRead, site_id(site));
}

MBarrier& own_mbarrier(uintptr_t barrier, Site site) {
  auto found = current->cta->mbarriers.find(barrier);
  if (found == current->cta->mbarriers.end())
    fail("no mbarrier of this CTA was initialised at this address; by " + name_of(current) + " (" + text(site) + ")");
  touch(barrier, false, site);
  return found->second;
}

}  // namespace

void complete_if_due(MBarrier& m) {
  if (m.pending != 0 || m.bytes != 0) return;
  ++machine->progress;
  std::vector<Stamp> own;  // never empty: a phase needs an arrival of the CTA
  const uint32_t first = m.owner->first_thread, last = first + static_cast<uint32_t>(m.owner->fibers.size());
  for (const Stamp& s : m.arrived)
    if (const size_t thread = s.thread % machine->thread_count; thread >= first && thread < last) own.push_back(s);
  m.released = join(m.arrived, m.released);
  m.released_in_block = join(own, m.released_in_block);
  m.arrived.clear();
  m.pending = m.arrivals;
  m.parity ^= 1;
  wake(m.waiting);
}

void mbarrier_init(uintptr_t barrier, int arrivals, Site site) {
  RuntimeScope scope;
  if (arrivals < 1) fail("mbarrier_init with " + std::to_string(arrivals) + " arrivals by " + name_of(current));
  touch(barrier, true, site);
  MBarrier m;
  m.owner = current->cta;
  m.arrivals = m.pending = arrivals;
  current->cta->mbarriers[barrier] = m;
  current->unfenced.push_back(barrier);
}

void mbarrier_init_fence() {
  RuntimeScope scope;
  for (uintptr_t barrier : current->unfenced) current->cta->mbarriers[barrier].fenced = true;
  current->unfenced.clear();
}

void mbarrier_arrive_expect(uintptr_t barrier, int bytes, Site site) {
  RuntimeScope scope;
  MBarrier& m = own_mbarrier(barrier, site);
  if (m.pending == 0)
    fail("mbarrier: " + name_of(current) + " (" + text(site) + ") arrives when the phase has all its arrivals");
  m.bytes += bytes;
  --m.pending;
  m.arrived.push_back(stamp(current));
  ++current->epoch;
  complete_if_due(m);
}

bool mbarrier_try_wait(uintptr_t barrier, int parity, bool cluster_scope, Site site) {
  RuntimeScope scope;
  MBarrier& m = own_mbarrier(barrier, site);
  if (m.parity == parity) {
    m.waiting.push_back(current);
    block("mbarrier_try_wait", site);
  }
  if (m.parity == parity) return false;
  learn(current, cluster_scope ? m.released : m.released_in_block);
  return true;
}

}  // namespace emulator
