// Registered memory and its shadow.
#include <sys/mman.h>

#include <algorithm>
#include <bit>

#include "machine.h"

namespace emulator {
namespace {

std::vector<Region*> regions;  // sorted by address
std::map<uintptr_t, std::unique_ptr<Region>> buffers;
Region* last_found = nullptr;

uint32_t moments = 0;

// Shadow memory of regions that are gone, by its bytes: a launch makes and drops that of every CTA, and pages are what
// it costs.
std::map<size_t, std::vector<ShadowWord*>> free_shadows;
size_t free_bytes = 0;

// So that there are few sizes.
size_t shadow_bytes(const Region& region) {
  constexpr size_t kLeast = 1 << 16;
  return std::max(kLeast, std::bit_ceil(region.word_count() * sizeof(ShadowWord)));
}

ShadowWord* take_shadow(size_t bytes) {
  if (auto& free = free_shadows[bytes]; !free.empty()) {
    ShadowWord* words = free.back();
    free.pop_back();
    free_bytes -= bytes;
    return words;
  }
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw Error("no memory for the checker");
  return static_cast<ShadowWord*>(p);
}

}  // namespace

Region::Region(uintptr_t begin, size_t bytes, std::string name, Cta* owner, bool track_initialised)
    : begin(begin),
      end(begin + bytes),
      name(std::move(name)),
      owner(owner),
      track_initialised(track_initialised),
      words_(take_shadow(shadow_bytes(*this))),
      used_((word_count() + kBlock - 1) / kBlock),
      born_(++moments),
      since_(born_) {}
Region::~Region() {
  constexpr size_t kKeptBytes = 256 << 20;
  const size_t bytes = shadow_bytes(*this);
  if (free_bytes + bytes > kKeptBytes) {
    munmap(words_, bytes);
    return;
  }
  free_shadows[bytes].push_back(words_);
  free_bytes += bytes;
}

void Region::forget_accesses() {
  since_ = ++moments;
  late = 0;
}

void add_region(Region* region) {
  auto after = [](const Region* a, const Region* b) { return a->begin < b->begin; };
  regions.insert(std::upper_bound(regions.begin(), regions.end(), region, after), region);
}
void remove_region(Region* region) {
  std::erase(regions, region);
  last_found = nullptr;
}

Region* find_region(uintptr_t address) {
  if (last_found && last_found->contains(address)) return last_found;
  auto above = [](uintptr_t a, const Region* r) { return a < r->begin; };
  auto next = std::upper_bound(regions.begin(), regions.end(), address, above);
  if (next == regions.begin() || address >= (*--next)->end) return nullptr;
  return last_found = *next;
}

Region* region_at(uintptr_t address) {
  Region* own = current->cta->shared.get();
  return own && own->contains(address) ? own : find_region(address);
}

std::string regions_near(uintptr_t address) {
  constexpr uintptr_t kNear = 4096;
  std::string found;
  for (const Region* r : regions) {
    if (address >= r->end && address - r->end < kNear)
      found += ", " + std::to_string(address - r->end) + " bytes past the end of " + r->name;
    if (address < r->begin && r->begin - address < kNear)
      found += ", " + std::to_string(r->begin - address) + " bytes before " + r->name;
  }
  return found;
}

void register_buffer(const void* p, size_t bytes, const std::string& name, bool initialised) {
  if (bytes == 0) return;
  const auto begin = reinterpret_cast<uintptr_t>(p);
  auto region = std::make_unique<Region>(begin, bytes, name, nullptr, !initialised);
  add_region(region.get());
  buffers[begin] = std::move(region);
}
void unregister_buffer(const void* p) {
  auto found = buffers.find(reinterpret_cast<uintptr_t>(p));
  if (found == buffers.end()) return;
  remove_region(found->second.get());
  buffers.erase(found);
}

void forget_accesses() {
  for (auto& [begin, region] : buffers) region->forget_accesses();
}

}  // namespace emulator
