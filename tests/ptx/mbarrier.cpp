// Barriers in shared memory, and what arrives at them by itself.
#include <cstring>

#include "launch.h"

namespace ptx {
namespace {

using emulator::current;

// The 64 bits of an mbarrier, which PTX leaves to the machine. Phases are counted from 0; the parity of one that is
// going on is its lowest bit.
struct Mbarrier {
  uint64_t parity : 1, count : 20, pending : 20;
  int64_t bytes : 22;  // that have been announced and have not arrived
};
static_assert(sizeof(Mbarrier) == 8);

constexpr int64_t kMostBytes = (1 << 20) - 1;

Mbarrier& at(const Place& place) {
  return *reinterpret_cast<Mbarrier*>(place.pointer);
}

void complete_if_due(Mbarrier& m) {
  if (m.pending != 0 || m.bytes != 0) return;
  m.parity ^= 1;
  m.pending = m.count;
  ++emulator::machine->progress;
}

}  // namespace

void Launch::mbarrier_init(int line, uint32_t barrier, uint32_t count) {
  if (count < 1 || count > kMostBytes) fail(line, "mbarrier.init with a count of " + std::to_string(count));
  const Mbarrier m{0, count, count, 0};
  store(line, Space::kShared, barrier, &m, sizeof m);
}

void Launch::mbarrier_arrive_expect_tx(int line, uint32_t barrier, uint32_t bytes) {
  place(line, Space::kShared, barrier, sizeof(Mbarrier), false);
  Mbarrier& m = at(shared_place(line, Space::kShared, barrier, sizeof m));
  if (m.bytes + int64_t{bytes} > kMostBytes) fail(line, "more bytes than an mbarrier counts");
  if (m.pending == 0) fail(line, "mbarrier.arrive at a phase that has all its arrivals");
  m.bytes += bytes;
  --m.pending;
  complete_if_due(m);
}

bool Launch::mbarrier_try_wait_parity(int line, uint32_t barrier, uint32_t parity) {
  if (parity > 1) fail(line, "mbarrier.try_wait for a parity of " + std::to_string(parity));
  place(line, Space::kShared, barrier, sizeof(Mbarrier), false);
  const Mbarrier& m = at(shared_place(line, Space::kShared, barrier, sizeof m));
  if (m.parity != parity) return true;
  land_some();
  if (m.parity != parity) return true;
  emulator::give_way(emulator::State::kSpinning);
  return m.parity != parity;
}

void Launch::st_async(int line, uint32_t to, const uint32_t* value, uint32_t bytes, uint32_t barrier) {
  if (to % bytes) fail(line, "misaligned st.async of " + std::to_string(bytes) + " bytes");
  Sent sent{line,
            emulator::name_of(current),
            shared_place(line, Space::kSharedCluster, to, bytes),
            shared_place(line, Space::kSharedCluster, barrier, sizeof(Mbarrier)),
            std::vector<char>(bytes),
            0,
            bytes};
  std::memcpy(sent.value.data(), value, bytes);
  if (sent.to.cta != sent.barrier.cta) fail(line, "st.async with the mbarrier of another CTA");
  sent_.push_back(std::move(sent));
}

void Launch::cp_async_bulk(int line, uint32_t to, uint32_t from, uint32_t bytes, uint32_t barrier) {
  if (to % 16 || from % 16 || bytes % 16) fail(line, "misaligned cp.async.bulk of " + std::to_string(bytes) + " bytes");
  const Sent sent{line,
                  emulator::name_of(current),
                  shared_place(line, Space::kSharedCluster, to, bytes),
                  shared_place(line, Space::kSharedCluster, barrier, sizeof(Mbarrier)),
                  {},
                  shared_place(line, Space::kShared, from, bytes).pointer,
                  bytes};
  if (sent.to.cta != sent.barrier.cta) fail(line, "cp.async.bulk with the mbarrier of another CTA");
  sent_.push_back(sent);
}

void Launch::land(const Sent& sent) {
  emulator::Region& region = *sent.to.cta->shared;
  if (region.dead) {
    emulator::abandon("what " + sent.thread + " has sent, line " + std::to_string(sent.line) +
                      " of the PTX, lands in a CTA that has exited");
    return;
  }
  const void* from = sent.from ? reinterpret_cast<const void*>(sent.from) : sent.value.data();
  std::memcpy(reinterpret_cast<void*>(sent.to.pointer), from, sent.bytes);
  for (uint32_t i = 0; i < sent.bytes; i += 4) region.shadow(sent.to.pointer + i).initialised = 0xF;
  Mbarrier& m = at(sent.barrier);
  m.bytes -= sent.bytes;
  complete_if_due(m);
}

// Those that are under way: in order, the other way round, or some of them at random.
void Launch::land_some() {
  const uint64_t seed = emulator::options().seed;
  std::vector<Sent> landing, left;
  for (Sent& sent : sent_) (seed >= 2 && emulator::random_bits() % 2 ? left : landing).push_back(std::move(sent));
  sent_ = std::move(left);
  if (seed % 2) std::reverse(landing.begin(), landing.end());
  for (const Sent& sent : landing) land(sent);
}

}  // namespace ptx
