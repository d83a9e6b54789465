// Streams beside the current one, and events between them.
//
// No torch.
#pragma once
#include <cuda_runtime_api.h>

#include <mutex>
#include <vector>

namespace fusedlstm::cuda {

// A stream, and events that its user records: on the current stream, when what it is to run may begin; on itself, when
// that is done.
struct SideStream {
  cudaStream_t stream;
  cudaEvent_t may_begin, is_done;
};

// Those of one device, made once, kept as long as the process, and lent: to make one takes longer than to use it. For
// any number of threads.
class StreamPool {
 public:
  // Throws std::runtime_error where CUDA makes none. The device must be the current one.
  std::vector<SideStream> take(int count);
  // Once nothing more is enqueued on them by who took them.
  void give_back(const std::vector<SideStream>& streams);

 private:
  std::mutex mutex_;
  std::vector<SideStream> free_;
};

}  // namespace fusedlstm::cuda
