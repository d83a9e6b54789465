#include "memory.h"

#include <sys/mman.h>

#include <cstdlib>
#include <memory>
#include <new>

namespace fusedlstm::cpu {
namespace {

constexpr int64_t kKeptBytes = int64_t(128) << 20;
constexpr int64_t kHugePage = int64_t(2) << 20;

struct Free {
  void operator()(char* p) const { std::free(p); }
};

struct Scratch {
  std::unique_ptr<char, Free> data;
  int64_t bytes = 0;
};

Scratch& scratch() {
  thread_local Scratch own;
  return own;
}

}  // namespace

char* scratch_memory(int64_t bytes) {
  Scratch& own = scratch();
  if (bytes > own.bytes) {
    own = {};
    const int64_t alignment = bytes >= 2 * kHugePage ? kHugePage : 64;
    const int64_t rounded = (bytes + alignment - 1) / alignment * alignment;
    own.data.reset(static_cast<char*>(std::aligned_alloc(size_t(alignment), size_t(rounded))));
    if (!own.data) throw std::bad_alloc();
    own.bytes = rounded;
    if (alignment == kHugePage) madvise(own.data.get(), size_t(rounded), MADV_HUGEPAGE);
  }
  return own.data.get();
}

void release_scratch_memory() {
  Scratch& own = scratch();
  if (own.bytes > kKeptBytes) own = {};
}

}  // namespace fusedlstm::cpu
