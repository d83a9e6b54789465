#include "streams.h"

#include "fallback.h"

namespace fusedlstm::cuda {
namespace {

// Not ordered with the legacy default stream, which may be the current one: events order it, and they alone.
SideStream new_stream() {
  SideStream side{};
  check(cudaStreamCreateWithFlags(&side.stream, cudaStreamNonBlocking), "a stream");
  for (cudaEvent_t* event : {&side.may_begin, &side.is_done})
    check(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "an event");
  return side;
}

}  // namespace

std::vector<SideStream> StreamPool::take(int count) {
  const std::lock_guard lock(mutex_);
  while (free_.size() < static_cast<size_t>(count)) free_.push_back(new_stream());
  const std::vector<SideStream> taken(free_.end() - count, free_.end());
  free_.resize(free_.size() - taken.size());
  return taken;
}

void StreamPool::give_back(const std::vector<SideStream>& streams) {
  const std::lock_guard lock(mutex_);
  free_.insert(free_.end(), streams.begin(), streams.end());
}

}  // namespace fusedlstm::cuda
