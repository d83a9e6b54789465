// Stores that other threads see late: relaxed stores word by word, store_async and bulk copies as a whole, in an order
// of their own.
//
// A late store lands when nothing else can run (or earlier, at random), except that a thread which is known to come
// after it sees it at once: that is what the hardware promises, and nothing more. Fences tell: who reads what a relaxed
// store wrote, and has a fence after it, comes after all that came before the last fence before the store.
#include <algorithm>
#include <cstring>

#include "machine.h"

namespace emulator {
namespace {

void land(LateStore& store) {
  ++machine->progress;
  if (!store.mbarrier) {
    memcpy(reinterpret_cast<void*>(store.address), store.value, store.bytes);
    Region* region = find_region(store.address);
    region->shadow(store.address).initialised = 0xF;
    --region->late;
    machine->fences.erase(store.address);
    if (store.at_fence.known) machine->fences[store.address] = store.at_fence;
    const auto word = machine->late_words.find(store.address);
    word->second.epoch = 0;
    if (--word->second.count == 0) machine->late_words.erase(word);
    return;
  }
  Region* region = find_region(store.address);
  if (!region || region->dead) {
    abandon((store.from ? "bulk_copy by " : "store_async by ") +
            thread_name(store.sender.thread - machine->thread_count) + " lands in a CTA that has exited");
    return;
  }
  const void* value = store.from ? reinterpret_cast<const void*>(store.from) : store.value;
  memcpy(reinterpret_cast<void*>(store.address), value, store.bytes);
  for (size_t i = 0; i < store.bytes; i += 4) region->shadow(store.address + i).in_flight = 0;
  MBarrier& m = region->owner->mbarriers[store.mbarrier];
  m.bytes -= store.bytes;
  m.arrived.push_back(store.sender);
  complete_if_due(m);
}

// Whether an earlier store to the same word must land first.
bool overtakes(size_t index) {
  const LateStore& store = machine->late[index];
  const auto words = machine->late_words.find(store.address);
  if (store.mbarrier || words == machine->late_words.end() || words->second.count == 1) return false;
  for (size_t i = 0; i < index; ++i)
    if (!machine->late[i].mbarrier && machine->late[i].address == store.address) return true;
  return false;
}

// Lands those for which lands(index) is true, all in order. It is asked about each while they are all there.
template <class Lands>
void land_each(const Lands& lands) {
  auto& late = machine->late;
  std::vector<bool> chosen(late.size());
  for (size_t i = 0; i < late.size(); ++i) chosen[i] = lands(i);
  const auto first = static_cast<size_t>(std::find(chosen.begin(), chosen.end(), true) - chosen.begin());
  std::vector<LateStore> landing;
  size_t left = first;
  for (size_t i = first; i < late.size(); ++i)
    if (chosen[i])
      landing.push_back(std::move(late[i]));
    else
      late[left++] = std::move(late[i]);
  late.erase(late.begin() + static_cast<ptrdiff_t>(left), late.end());
  for (LateStore& store : landing) land(store);
}

}  // namespace

bool deliver_some() {
  auto& late = machine->late;
  if (late.empty()) return false;
  const bool in_order = options().seed < 2;
  const auto overwrites = [](const LateStore& store) { return store.overwrites; };
  const bool only_new_words =
      options().seed % 2 == 1 && (!machine->ready.empty() || !std::all_of(late.begin(), late.end(), overwrites));
  land_each([&](size_t i) {
    return !(only_new_words && late[i].overwrites) && (in_order || ((random_bits() & 1) && !overtakes(i)));
  });
  return true;
}

void deliver_all() {
  land_each([](size_t) { return true; });
}

void deliver_known_to(const Fiber* reader, uintptr_t address, size_t bytes) {
  if (const Region* region = region_at(address); !region || !region->late) return;
  const auto comes_after = [&](uint32_t thread, uint32_t epoch) {
    return thread == reader->id || (*reader->known)[thread] >= epoch;
  };
  bool any = false;
  for (size_t i = 0; i < bytes && !any; i += 4)
    if (const auto word = machine->late_words.find((address + i) & ~uintptr_t(3)); word != machine->late_words.end())
      any = comes_after(word->second.thread, word->second.epoch);
  if (!any) return;  // most poll what others have sent: then there is no need to look through all that is late
  land_each([&](size_t i) {
    const LateStore& store = machine->late[i];
    const bool here = !store.mbarrier && store.address + 4 > address && store.address < address + bytes;
    return here && comes_after(store.sender.thread, store.sender.epoch);
  });
}

namespace {

// The current thread reads what has landed there.
void see(uintptr_t address, size_t bytes) {
  for (size_t i = 0; i < bytes && !machine->fences.empty(); i += 4) {
    const auto found = machine->fences.find(address + i);
    if (found == machine->fences.end()) continue;
    const Stamp& fence = found->second;
    const auto same_thread = [&](const Stamp& s) { return s.thread == fence.thread; };
    const auto seen = std::find_if(current->seen.begin(), current->seen.end(), same_thread);
    if (seen == current->seen.end())
      current->seen.push_back(fence);
    else if (seen->epoch < fence.epoch)
      *seen = fence;
  }
}

}  // namespace

void gpu_fence() {
  RuntimeScope scope;
  if (!current->seen.empty()) learn(current, join(current->seen));
  current->seen.clear();
  current->at_fence = stamp(current);
  ++current->epoch;
}

void load(void* value, uintptr_t address, size_t bytes, Access access, Site site) {
  RuntimeScope scope;
  if (access == Access::kRelaxedRead) {
    // Reading the same again means polling: let the others run until nothing but polling is left to do.
    constexpr size_t kRemembered = 64;
    auto& polled = current->polled;
    bool again = false;
    for (uintptr_t p : polled) again = again || p == address;
    if (again || polled.size() == kRemembered) polled.clear();
    if (again) {
      current->site = site;
      give_way(State::kSpinning);
    }
    polled.push_back(address);
  }
  deliver_known_to(current, address, bytes);
  check_access(address, bytes, access, site_id(site));
  if (access == Access::kRelaxedRead) see(address, bytes);
  memcpy(value, reinterpret_cast<const void*>(address), bytes);
}

void store(uintptr_t address, const void* value, size_t bytes, Access access, Site site) {
  RuntimeScope scope;
  deliver_known_to(current, address, bytes);
  Region* region = region_at(address);
  const bool overwrites = region && region->shadow(address).written;
  check_access(address, bytes, access, site_id(site));
  if (access != Access::kRelaxedWrite) {
    memcpy(reinterpret_cast<void*>(address), value, bytes);
    return;
  }
  for (size_t i = 0; i < bytes; i += 4) {
    LateStore late{address + i, {}, 4, stamp(current), 0, current->at_fence, overwrites};
    memcpy(late.value, static_cast<const char*>(value) + i, 4);
    machine->late.push_back(late);
    LateWord& word = machine->late_words[late.address];
    word = word.count ? LateWord{word.count + 1} : LateWord{1, late.sender.thread, late.sender.epoch};
    ++region->late;
  }
}

}  // namespace emulator
