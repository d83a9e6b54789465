#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

namespace fusedlstm::cpu {
namespace {

constexpr int64_t kKeptBytes = int64_t(128) << 20;
constexpr int64_t kHugePage = int64_t(2) << 20;

struct Block {
  char* data;
  int64_t bytes;
};

Block allocate(int64_t bytes) {
  const int64_t alignment = alignment_of(bytes);
  const int64_t rounded = (std::max<int64_t>(bytes, 1) + alignment - 1) / alignment * alignment;
  char* data = static_cast<char*>(std::aligned_alloc(size_t(alignment), size_t(rounded)));
  if (!data) throw std::bad_alloc();
  if (alignment == kHugePage) ask_for_huge_pages(data, rounded);
  return {data, rounded};
}

class Pool {
 public:
  // A block that was given back, if one is large enough; the one used last is the one most likely to be in a cache.
  // Else the largest is freed, since the caller will bring a larger one.
  Block take(int64_t bytes) {
    const std::lock_guard lock(mutex_);
    const auto fits = std::find_if(free_.rbegin(), free_.rend(), [&](const Block& b) { return b.bytes >= bytes; });
    if (fits != free_.rend()) return remove(std::prev(fits.base()));
    if (!free_.empty()) std::free(remove(std::max_element(free_.begin(), free_.end(), is_smaller)).data);
    return {nullptr, 0};
  }
  void give_back(Block block) {
    const std::lock_guard lock(mutex_);
    free_.push_back(block);
    for (kept_ += block.bytes; kept_ > kKeptBytes;) std::free(remove(free_.begin()).data);
  }

 private:
  std::mutex mutex_;
  std::vector<Block> free_;  // the one used last is the last
  int64_t kept_ = 0;         // bytes of all of them

  static bool is_smaller(const Block& a, const Block& b) { return a.bytes < b.bytes; }
  Block remove(std::vector<Block>::iterator at) {
    const Block block = *at;
    free_.erase(at);
    kept_ -= block.bytes;
    return block;
  }
};

// Never destroyed: threads may still run while the process exits.
Pool& pool() {
  static Pool& all = *new Pool;
  return all;
}

}  // namespace

int64_t alignment_of(int64_t bytes) {
  constexpr int64_t kCacheLine = 64;
  return bytes >= 2 * kHugePage ? kHugePage : kCacheLine;
}

void ask_for_huge_pages(void* data, int64_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(data), end = begin + uintptr_t(bytes);
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage, last = end / kHugePage * kHugePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
}

Scratch::Scratch(int64_t bytes) {
  Block block = pool().take(bytes);
  if (!block.data) block = allocate(bytes);
  data_ = block.data;
  bytes_ = block.bytes;
}

Scratch::~Scratch() {
  pool().give_back({data_, bytes_});
}

}  // namespace fusedlstm::cpu
