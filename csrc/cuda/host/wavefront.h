// Layers abreast: each on a stream of its own, a part of the steps behind the layer that feeds it.
//
// What feeds a part, a product of matrices, is enqueued on the current stream, and only the recurrences on others. So
// torch's operators and its allocator see one stream, BLAS has one workspace, and no tensor has to be recorded on
// another stream: all have joined the current one before memory is given back there. All is enqueued in an order in
// which nothing waits for what comes later, so that streams which share a queue of the device cannot lock each other
// out, and a graph that is captured meanwhile forks and joins by the same events.
#pragma once
#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "host.h"
#include "streams.h"

namespace fusedlstm::cuda {

// Steps [begin, end) of T.
struct Part {
  int begin, end;
};
// Number i in time of `parts` of nearly equal length; none is empty if parts <= T.
constexpr Part part_of(int64_t T, int parts, int i) {
  return {static_cast<int>(T * i / parts), static_cast<int>(T * (i + 1) / parts)};
}

// Of a list with one item a layer, those of the layers that run abreast.
template <class T>
std::span<T> group_of(std::span<T> all, size_t first, size_t abreast) {
  return all.subspan(first, std::min(abreast, all.size() - first));
}

class Wavefront {
 public:
  Wavefront(Host& host, int levels)
      : host_(host), streams_(host.streams().take(levels)), is_ahead_(static_cast<size_t>(levels)) {}
  // Memory that the levels use must outlive it: by then the current stream waits for all of them.
  ~Wavefront() {
    for (int level = 0; level < levels(); ++level)
      if (is_ahead_[static_cast<size_t>(level)]) (void)cudaStreamWaitEvent(host_.stream, side(level).is_done, 0);
    host_.streams().give_back(streams_);
  }
  Wavefront(const Wavefront&) = delete;

  // Runs all parts of all levels; levels and parts in the order of running. feed(level, i) enqueues on the current
  // stream what part i of the level takes from the level before, in memory that the level's part before has read;
  // launch(level, i, stream) its recurrence. Ends at the first launch that is not a success, and returns it.
  template <class Feed, class Launch>
  cudaError_t run(int parts, Feed feed, Launch launch) {
    for (int stage = 0; stage < parts + levels() - 1; ++stage) {
      // The last level first: then the event of the level before is still that of the part to be fed from, and not of
      // the one that it runs meanwhile.
      for (int level = std::min(levels() - 1, stage); level >= std::max(0, stage - parts + 1); --level) {
        const int i = stage - level;
        if (level > 0) join(level - 1);
        join(level);
        feed(level, i);
        const SideStream& own = side(level);
        check(cudaEventRecord(own.may_begin, host_.stream), "an event");
        wait(own.stream, own.may_begin);
        const cudaError_t error = launch(level, i, own.stream);
        check(cudaEventRecord(own.is_done, own.stream), "an event");
        is_ahead_[static_cast<size_t>(level)] = true;
        if (error != cudaSuccess) return error;
      }
    }
    return cudaSuccess;
  }

 private:
  Host& host_;
  const std::vector<SideStream> streams_;
  std::vector<bool> is_ahead_;  // of each level, whether it has run a part that the current stream does not wait for

  int levels() const { return static_cast<int>(streams_.size()); }
  const SideStream& side(int level) const { return streams_[static_cast<size_t>(level)]; }
  // The current stream waits for what the level has run so far: once, since each wait is a call of the driver.
  void join(int level) {
    if (!is_ahead_[static_cast<size_t>(level)]) return;
    wait(host_.stream, side(level).is_done);
    is_ahead_[static_cast<size_t>(level)] = false;
  }
  static void wait(cudaStream_t stream, cudaEvent_t event) { check(cudaStreamWaitEvent(stream, event, 0), "a wait"); }
};

}  // namespace fusedlstm::cuda
