#include "streams.h"

#include <algorithm>
#include <deque>
#include <random>
#include <string>
#include <vector>

#include "emulator.h"

struct CUstream_st {
  int number;  // from 1 on
};
struct CUevent_st {
  uint64_t recorded = 0;  // its last record; 0: none
};

namespace emulator {
namespace {

struct Entry : Operation {
  uint64_t number;       // in the order of enqueueing
  uint64_t records = 0;  // the record that it is
  uint64_t awaits = 0;   // the record that it waits for
};

struct Queue {
  int stream;  // 0: the current one
  std::deque<Entry> entries;
  int chain = 0;  // see longest_chain
};

bool deferring = false;
uint64_t entries_so_far = 0, records_so_far = 0, records_before = 0;  // before: of earlier Deferreds
std::vector<bool> record_done;                                        // of this one, from records_before + 1 on
std::vector<int> record_chain;
int longest = 0, waits_so_far = 0;
std::deque<Queue> queues;

Queue& queue_of(cudaStream_t stream) {
  const int number = stream ? stream->number : 0;
  for (Queue& queue : queues)
    if (queue.stream == number) return queue;
  return queues.emplace_back(Queue{number, {}});
}

void append(cudaStream_t stream, Entry entry) {
  Queue& queue = queue_of(stream);
  if (stream && queue.entries.empty() && !entry.awaits)
    throw Error("stream " + std::to_string(queue.stream) + " was not forked from the current one");
  entry.number = ++entries_so_far;
  queue.entries.push_back(std::move(entry));
}

bool can_run(const Entry& entry) {
  return entry.awaits == 0 || record_done[entry.awaits - records_before - 1];
}
bool can_run(const Queue& queue) {
  return !queue.entries.empty() && can_run(queue.entries.front());
}

// Each stream may be anywhere before its next wait.
void check_grids_fit() {
  unsigned ctas = 0;
  for (const Queue& queue : queues) {
    unsigned most = 0;
    for (const Entry& entry : queue.entries) {
      if (!can_run(entry)) break;
      most = std::max(most, entry.cooperative_ctas);
    }
    ctas += most;
  }
  if (ctas > unsigned(options().sm_count))
    throw Error("cooperative grids of " + std::to_string(ctas) + " CTAs may run at once, on " +
                std::to_string(options().sm_count) + " SMs");
}

Queue* next(std::mt19937_64& random) {
  std::vector<Queue*> ready;
  for (Queue& queue : queues)
    if (can_run(queue)) ready.push_back(&queue);
  if (ready.empty()) return nullptr;
  const int order = options().stream_order;
  if (order > 4) return ready[random() % ready.size()];
  return *std::min_element(ready.begin(), ready.end(), [&](const Queue* a, const Queue* b) {
    if (order == 0) return a->entries.front().number < b->entries.front().number;
    if ((a->stream == 0) != (b->stream == 0)) return (order % 2 == 1) == (a->stream == 0);
    return order < 3 ? a->stream < b->stream : a->stream > b->stream;
  });
}

}  // namespace

// Of what ran last: the most operations of other streams than the current one that waited for one another.
int longest_chain() {
  return longest;
}

// The waits for events that it had.
int waits() {
  return waits_so_far;
}

void enqueue(cudaStream_t stream, Operation operation) {
  if (deferring)
    append(stream, {std::move(operation), 0});
  else
    operation.run();
}

Deferred::Deferred() {
  deferring = true;
  records_before = records_so_far;
  record_done.clear();
  record_chain.clear();
  longest = waits_so_far = 0;
}

Deferred::~Deferred() {
  for (Queue& queue : queues)
    for (Entry& entry : queue.entries)
      if (entry.frees) entry.run();
  queues.clear();
  deferring = false;
}

void Deferred::run() {
  std::mt19937_64 random(options().stream_order);
  for (;;) {
    check_grids_fit();
    Queue* queue = next(random);
    if (!queue) break;
    Entry entry = std::move(queue->entries.front());
    queue->entries.pop_front();
    if (entry.run) {
      entry.run();
      longest = std::max(longest, queue->chain += queue->stream != 0);
    }
    if (entry.records) {
      record_done[entry.records - records_before - 1] = true;
      record_chain[entry.records - records_before - 1] = queue->chain;
    }
    if (entry.awaits) queue->chain = std::max(queue->chain, record_chain[entry.awaits - records_before - 1]);
    // What is left now may still run when the operator has returned and its memory is somebody else's.
    const bool is_over = queue->stream == 0 && queue->entries.empty();
    for (const Queue& other : queues)
      if (is_over && !other.entries.empty())
        throw Error("stream " + std::to_string(other.stream) + " was not joined to the current one");
  }
  for (const Queue& queue : queues)
    if (!queue.entries.empty()) throw Error("streams wait for each other");
}

}  // namespace emulator

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  static int streams = 0;
  *stream = new CUstream_st{++streams};
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  using namespace emulator;
  if (!deferring) throw Error("an event outside of an operator");
  event->recorded = ++records_so_far;
  record_done.push_back(false);
  record_chain.push_back(0);
  append(stream, {{}, 0, event->recorded});
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  using namespace emulator;
  // What the capture of a graph says to an event that is not of the graph.
  if (event->recorded <= records_before) return cudaErrorStreamCaptureIsolation;
  ++waits_so_far;
  append(stream, {{}, 0, 0, event->recorded});
  return cudaSuccess;
}
