// Scratch memory of the kernels: one pool for the whole process.
#pragma once

#include <cstdint>

namespace fusedlstm::cpu {

// Where memory of so many bytes should begin: at a huge page, if it has more than one, so that as many as can be are
// whole; else at a cache line. A power of two.
int64_t alignment_of(int64_t bytes);

// Asks for huge pages in the place of all small ones that lie in them as a whole: before they are first written.
void ask_for_huge_pages(void* data, int64_t bytes);

// Memory of at least `bytes` for the time of one call, 64-byte aligned, uninitialised. Throws std::bad_alloc.
//
// It goes back to the pool, which keeps up to 128 MiB in all for later calls of any thread; these then neither allocate
// nor touch new pages. A call that finds nothing large enough replaces the largest block that is free, so that calls
// one after another keep one block, whatever threads they come from.
//
// Large blocks ask for huge pages, and so do frozen weights. Results do not: where a hypervisor takes huge pages back
// as soon as they are free, each new one costs more than its small pages would.
class Scratch {
 public:
  explicit Scratch(int64_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;

  char* data() const { return data_; }

 private:
  char* data_;
  int64_t bytes_;
};

}  // namespace fusedlstm::cpu
