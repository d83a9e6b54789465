// What a translated kernel asks of the machine: one object serves all threads, which take turns.
//
// Addresses are 64-bit values of the space they are given with; those of shared memory have 32 bits. A generic address
// of global memory is the address in this process.
#pragma once
#include <cstdint>

namespace ptx {

enum class Space : uint8_t { kGeneric, kGlobal, kShared, kSharedCluster, kParameters };

struct Index {
  uint32_t x, y, z;
};

// Registers of the machine that a thread reads; the names are those of PTX.
struct Special {
  Index tid, ntid, ctaid, nctaid;
  uint32_t cluster_ctarank, cluster_nctarank;
};

enum class Mma : uint8_t { kBf16K16, kF16K16, kF16K8, kTf32K8 };

class Thread {
 public:
  virtual Special special() = 0;
  // line, here and below: of the PTX file, for messages.
  virtual uint32_t globaltimer_hi(int line) = 0;

  // Of naturally aligned bytes: those of a vector as a whole.
  virtual void load(int line, Space space, uint64_t address, void* value, uint32_t bytes) = 0;
  virtual void store(int line, Space space, uint64_t address, const void* value, uint32_t bytes) = 0;
  virtual void prefetch(int line, uint64_t address) = 0;
  virtual uint32_t shared_memory(int line) = 0;  // where the dynamic shared memory begins
  virtual uint64_t to_generic(int line, Space space, uint64_t address) = 0;
  virtual uint64_t from_generic(int line, Space space, uint64_t address) = 0;
  // The address in CTA `rank` that corresponds to one of this CTA.
  virtual uint32_t mapa(int line, uint32_t address, uint32_t rank) = 0;

  // All threads of the CTA, of the warp, of the cluster.
  virtual void bar_sync(int line, uint32_t barrier) = 0;
  virtual void bar_warp_sync(int line, uint32_t lanes) = 0;
  virtual void cluster_arrive(int line) = 0;
  virtual void cluster_wait(int line) = 0;

  virtual uint32_t shfl_bfly(int line, uint32_t value, uint32_t mask, uint32_t clamp, uint32_t lanes) = 0;
  virtual bool vote_any(int line, bool predicate, uint32_t lanes) = 0;
  // d, c: 4 registers; a, b: as many as the shape has.
  virtual void mma(int line, Mma kind, uint32_t* d, const uint32_t* a, const uint32_t* b, const uint32_t* c) = 0;

  virtual void mbarrier_init(int line, uint32_t barrier, uint32_t count) = 0;
  virtual void mbarrier_arrive_expect_tx(int line, uint32_t barrier, uint32_t bytes) = 0;
  virtual bool mbarrier_try_wait_parity(int line, uint32_t barrier, uint32_t parity) = 0;
  virtual void st_async(int line, uint32_t to, const uint32_t* value, uint32_t bytes, uint32_t barrier) = 0;
  virtual void cp_async_bulk(int line, uint32_t to, uint32_t from, uint32_t bytes, uint32_t barrier) = 0;

  [[noreturn]] virtual void assert_failed(int line, const char* text, const char* function) = 0;

 protected:
  ~Thread() = default;
};

// A kernel: parameters are as the launch was given them, one after another.
using Kernel = void (*)(Thread& thread, const void* const* parameters);

}  // namespace ptx
