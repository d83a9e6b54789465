// store_async and bulk copies: what they may be asked for, and what they access. They land as late_stores.cpp has it.
#include <algorithm>
#include <cstring>

#include "machine.h"

namespace emulator {
namespace {

// The asynchronous accesses of the current thread, in a new epoch of them.
Event next_access(uint32_t site) {
  const auto thread = static_cast<uint32_t>(machine->thread_count) + current->id;
  return Event(++current->async_epoch, site, thread);
}

// What will arrive at `address`, and be counted at `barrier`. what: the primitive.
LateStore sent(const char* what, uintptr_t address, size_t bytes, uintptr_t barrier, const Event& as, Site site) {
  const auto refuse = [&](const char* why) { fail(std::string(what) + " " + why + actor_at(site)); };
  Region* region = find_region(address);
  if (!region || !region->owner) refuse("to an address that is not in the cluster's shared memory");
  if (barrier < region->begin || barrier >= region->end) refuse("with the mbarrier of another CTA");
  const auto found = region->owner->mbarriers.find(barrier);
  if (found == region->owner->mbarriers.end()) refuse("without an initialised mbarrier");
  if (!found->second.fenced) refuse("to an mbarrier without mbarrier_init_fence");
  check(barrier, 8, Access::kRelaxedRead, as.site, as);
  check(address, bytes, Access::kWrite, as.site, as);
  for (size_t i = 0; i < bytes; i += 4) region->shadow(address + i).in_flight = 1;
  LateStore late{address, {}, static_cast<uint32_t>(bytes), stamp(current), barrier};
  late.sender.thread = as.thread();
  late.sender.epoch = as.epoch;
  return late;
}

const Fiber* fiber_in_cluster(uint32_t id) {
  for (const auto& cta : current->cta->cluster->ctas)
    if (id >= cta->first_thread && id < cta->first_thread + cta->fibers.size())
      return cta->fibers[id - cta->first_thread];
  return nullptr;
}

// Whether there is a fence of its thread after a store, as far as the current thread knows.
bool is_handed_over(const Event& write) {
  if (!write.bytes() || write.thread() >= machine->thread_count) return true;  // there is none, or a bulk copy wrote
  const Fiber* writer = fiber_in_cluster(write.thread());
  if (!writer) return false;
  const auto& fences = writer->proxy_fences;
  const auto fence = std::lower_bound(fences.begin(), fences.end(), write.epoch);
  return fence != fences.end() && knows(current, Event(*fence, 0, write.thread()));
}

void require_handed_over(uintptr_t address, size_t bytes, uint32_t site) {
  Region* region = find_region(address);
  if (!region) return;
  for (uintptr_t at = address; at < address + bytes; at += 4)
    for (const Event& w : region->shadow(at).writes)
      if (!is_handed_over(w))
        fail_at(site, "race of a bulk_copy on " + place(*region, at) + ", which " + thread_name(w.thread()) +
                          " has stored at " + site_text(w.site) + " without a bulk_copy_fence after it,");
}

}  // namespace

void store_async(uintptr_t address, const void* value, size_t bytes, uintptr_t barrier, Site site) {
  RuntimeScope scope;
  if (address % bytes) fail_at(site_id(site), "misaligned store_async of " + std::to_string(bytes) + " bytes");
  LateStore late = sent("store_async", address, bytes, barrier, next_access(site_id(site)), site);
  memcpy(late.value, value, bytes);
  machine->late.push_back(late);
}

void bulk_copy(uintptr_t to, uintptr_t from, int bytes, uintptr_t barrier, Site site) {
  RuntimeScope scope;
  constexpr int kUnit = 16;
  const uint32_t id = site_id(site);
  if (bytes <= 0 || bytes % kUnit || to % kUnit || from % kUnit)
    fail_at(id, "misaligned bulk_copy of " + std::to_string(bytes) + " bytes");
  const Region* own = current->cta->shared.get();
  if (from < own->begin || from + bytes > own->end) fail_at(id, "bulk_copy from outside the CTA's own shared memory");
  const Event as = next_access(id);
  check(from, bytes, Access::kRead, id, as);
  require_handed_over(from, bytes, id);
  require_handed_over(to, bytes, id);
  LateStore late = sent("bulk_copy", to, bytes, barrier, as, site);
  late.from = from;
  machine->late.push_back(late);
}

void bulk_copy_fence() {
  RuntimeScope scope;
  current->proxy_fences.push_back(current->epoch);
  ++current->epoch;
}

}  // namespace emulator
