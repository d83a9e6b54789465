// Spaces of memory and their addresses.
#include <cstring>

#include "launch.h"

namespace ptx {
namespace {

using emulator::current;
using emulator::Region;

// Shared memory of the CTA itself is at small addresses; 16 MB for each CTA of the cluster follow, which mapa leads to.
constexpr uint32_t kWindowBits = 24;
constexpr uint32_t kFirstShared = 1024;
// What a generic address of shared memory has in its upper half: nothing of this process is there.
constexpr uint64_t kSharedWindow = 0xFFFF8000;

constexpr uint64_t upper(uint64_t address) {
  return address >> 32;
}

std::string text(uint64_t address) {
  char digits[20];
  std::snprintf(digits, sizeof digits, "0x%llx", static_cast<unsigned long long>(address));
  return digits;
}

// Reads need what has been written; writes write it.
void track(int line, Region& region, uintptr_t begin, uint32_t bytes, bool is_write) {
  for (uintptr_t at = begin; at < begin + bytes; ++at) {
    const unsigned bit = 1u << at % 4;
    emulator::ShadowWord& word = region.shadow(at);
    if (is_write)
      word.initialised |= bit;
    else if (region.track_initialised && !(word.initialised & bit))
      Launch::fail(line,
                   "read of " + region.name + "+" + std::to_string(at - region.begin) + ", which nothing has written,");
  }
}

}  // namespace

Place Launch::shared_place(int line, Space space, uint64_t address, uint32_t bytes) {
  const uint64_t window = address >> kWindowBits, offset = (address & ((1u << kWindowBits) - 1)) - kFirstShared;
  const auto& ctas = current->cta->cluster->ctas;
  if (upper(address) || (window && space == Space::kShared) || window > ctas.size())
    fail(line, "access to " + text(address) + ", which is no shared memory of " +
                   (space == Space::kShared ? "the CTA" : "the cluster"));
  emulator::Cta* cta = window ? ctas[window - 1].get() : current->cta;
  const Region* region = cta->shared.get();
  if (!region || offset + bytes > region->end - region->begin)
    fail(line, "access to " + text(address) + ", outside the shared memory,");
  if (region->dead || !cta->started) fail(line, "access to shared memory of a CTA that does not run");
  return {cta, region->begin + offset};
}

uintptr_t Launch::place(int line, Space space, uint64_t address, uint32_t bytes, bool is_write) const {
  if (address % bytes) fail(line, "misaligned access of " + std::to_string(bytes) + " bytes to " + text(address));
  const auto is_parameter = [&](const emulator::Parameter& parameter) {
    const auto begin = reinterpret_cast<uintptr_t>(parameter.value);
    return address >= begin && address + bytes <= begin + parameter.bytes;
  };
  if (space == Space::kParameters || space == Space::kGeneric)
    if (std::any_of(parameters_.begin(), parameters_.end(), is_parameter) && !is_write) return address;
  if (space == Space::kParameters) fail(line, "access of " + std::to_string(bytes) + " bytes outside the parameters");
  Region* region;
  uintptr_t at = address;
  if (space == Space::kGlobal || (space == Space::kGeneric && upper(address) != kSharedWindow)) {
    region = emulator::find_region(at);
    if (!region || region->owner || at + bytes > region->end)
      fail(line, "access of " + std::to_string(bytes) + " bytes outside every buffer" + emulator::regions_near(at));
  } else {
    const uint64_t shared = space == Space::kGeneric ? static_cast<uint32_t>(address) : address;
    const Place place = shared_place(line, space == Space::kGeneric ? Space::kSharedCluster : space, shared, bytes);
    region = place.cta->shared.get();
    at = place.pointer;
  }
  track(line, *region, at, bytes, is_write);
  return at;
}

void Launch::load(int line, Space space, uint64_t address, void* value, uint32_t bytes) {
  std::memcpy(value, reinterpret_cast<const void*>(place(line, space, address, bytes, false)), bytes);
}

void Launch::store(int line, Space space, uint64_t address, const void* value, uint32_t bytes) {
  std::memcpy(reinterpret_cast<void*>(place(line, space, address, bytes, true)), value, bytes);
  if (space != Space::kShared) ++emulator::machine->progress;  // others may wait for it
}

void Launch::prefetch(int line, uint64_t address) {
  if (!emulator::find_region(address)) fail(line, "prefetch outside every buffer" + emulator::regions_near(address));
}

uint32_t Launch::shared_memory(int) {
  return kFirstShared;
}

uint64_t Launch::to_generic(int, Space space, uint64_t address) {
  return space == Space::kShared ? kSharedWindow << 32 | address : address;
}

uint64_t Launch::from_generic(int line, Space space, uint64_t address) {
  if (space != Space::kShared) return address;
  if (upper(address) != kSharedWindow) fail(line, "expected a generic address of shared memory, got " + text(address));
  return static_cast<uint32_t>(address);
}

uint32_t Launch::mapa(int line, uint32_t address, uint32_t rank) {
  const size_t ctas = current->cta->cluster->ctas.size();
  if (rank >= ctas) fail(line, "mapa to rank " + std::to_string(rank) + " of " + std::to_string(ctas));
  if (address >> kWindowBits) fail(line, "mapa of " + text(address) + ", which is no address of the CTA,");
  return (rank + 1) << kWindowBits | address;
}

}  // namespace ptx
