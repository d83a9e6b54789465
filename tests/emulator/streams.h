// Streams and events: what is enqueued waits, and runs later in one of the orders that they allow.
//
// Whole operations are reordered, one runs at a time. What the host enqueues outside of a Deferred runs at once.
#pragma once
#include <cuda_runtime_api.h>

#include <functional>

namespace emulator {

struct Operation {
  std::function<void()> run;
  unsigned cooperative_ctas = 0;  // of a cooperative grid: they must all find an SM at the same time
  bool frees = false;             // runs whatever became of those before it
};

// At the end of a stream; null is the current one of the host.
void enqueue(cudaStream_t stream, Operation operation);

// For its time what is enqueued waits for `run`. The order is that of options().stream_order: 0 as enqueued, 1 and 3
// the current stream as early as it can, the others up or down, 2 and 4 as late, any other at random.
class Deferred {
 public:
  Deferred();
  ~Deferred();  // drops what has not run
  Deferred(const Deferred&) = delete;
  // Throws Error where streams wait for each other, where one was not joined to the current stream or not forked from
  // it, as the capture of a graph would, and where cooperative grids may run at once that do not fit together.
  void run();
};

}  // namespace emulator
