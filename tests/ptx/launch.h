// The threads of one launch of a translated kernel, on the emulator's fibers and registered memory. Nothing here knows
// of tests/emulator/primitives_emulated.h: what an instruction does is written after the reference of PTX.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "machine.h"
#include "thread.h"

namespace ptx {

// Who waits at a barrier of a CTA or of a cluster.
struct Meeting {
  size_t arrived = 0;
  uint32_t round = 0;  // that the arrivals belong to
  std::vector<emulator::Fiber*> waiting;
};

// Lanes of a warp that are at one instruction.
struct Gathering {
  const char* what = nullptr;
  int line = 0;
  void* operands[32];
  std::vector<emulator::Fiber*> waiting;
};

// A place in the shared memory of a CTA.
struct Place {
  emulator::Cta* cta;
  uintptr_t pointer;  // in this process
};

// What st.async or cp.async.bulk will write.
struct Sent {
  int line;
  std::string thread;
  Place to, barrier;
  std::vector<char> value;
  uintptr_t from;  // where to read `bytes` when they land; 0: `value` has them
  uint32_t bytes;
};

class Launch final : public Thread {
 public:
  explicit Launch(std::vector<emulator::Parameter> parameters) : parameters_(std::move(parameters)) {}

  Special special() override;
  uint32_t globaltimer_hi(int line) override;
  [[noreturn]] void assert_failed(int line, const char* text, const char* function) override;

  // memory.cpp
  void load(int line, Space space, uint64_t address, void* value, uint32_t bytes) override;
  void store(int line, Space space, uint64_t address, const void* value, uint32_t bytes) override;
  void prefetch(int line, uint64_t address) override;
  uint32_t shared_memory(int line) override;
  uint64_t to_generic(int line, Space space, uint64_t address) override;
  uint64_t from_generic(int line, Space space, uint64_t address) override;
  uint32_t mapa(int line, uint32_t address, uint32_t rank) override;

  // meetings.cpp
  void bar_sync(int line, uint32_t barrier) override;
  void bar_warp_sync(int line, uint32_t lanes) override;
  void cluster_arrive(int line) override;
  void cluster_wait(int line) override;
  uint32_t shfl_bfly(int line, uint32_t value, uint32_t mask, uint32_t clamp, uint32_t lanes) override;
  bool vote_any(int line, bool predicate, uint32_t lanes) override;

  // mma.cpp
  void mma(int line, Mma kind, uint32_t* d, const uint32_t* a, const uint32_t* b, const uint32_t* c) override;

  // mbarrier.cpp
  void mbarrier_init(int line, uint32_t barrier, uint32_t count) override;
  void mbarrier_arrive_expect_tx(int line, uint32_t barrier, uint32_t bytes) override;
  bool mbarrier_try_wait_parity(int line, uint32_t barrier, uint32_t parity) override;
  void st_async(int line, uint32_t to, const uint32_t* value, uint32_t bytes, uint32_t barrier) override;
  void cp_async_bulk(int line, uint32_t to, uint32_t from, uint32_t bytes, uint32_t barrier) override;

  // By the current thread: ends the launch, and says where.
  [[noreturn]] static void fail(int line, const std::string& what);

 private:
  // Where an access goes in this process, checked: within its memory, aligned, and to be read only once written.
  uintptr_t place(int line, Space space, uint64_t address, uint32_t bytes, bool is_write) const;
  // Of shared memory, of this CTA or by an address that mapa has made.
  static Place shared_place(int line, Space space, uint64_t address, uint32_t bytes);
  // Blocks the current thread until it is woken. what: an instruction.
  void wait_at(const char* what, int line);
  // Waits for all 32 lanes; the last one runs `compute` on the operands of all. An `aligned` instruction has to be the
  // very same one for all.
  void gather(const char* what, int line, bool is_aligned, uint32_t lanes, void* operands,
              void (*compute)(void* const* lanes));
  void land_some();
  static void land(const Sent& sent);

  std::vector<emulator::Parameter> parameters_;
  std::map<const emulator::Cta*, Meeting> of_cta_;
  std::map<const emulator::Cluster*, Meeting> of_cluster_;
  std::map<const emulator::Fiber*, uint32_t> cluster_round_;  // that a thread has arrived at
  std::map<std::pair<const emulator::Cta*, uint32_t>, Gathering> of_warp_;
  std::vector<Sent> sent_;                                    // and not landed
  std::map<std::pair<const char*, int>, std::string> waits_;  // names of what threads wait for, which outlive them
};

}  // namespace ptx
