// What the host code needs beside the kernels: memory, and the few operations between them.
//
// No torch. torch implements it in the library, and the tests on CPU memory, so that both run the same host
// code. Everything is enqueued on the current stream and runs in its order, but for recurrences of layers that run
// abreast (wavefront.h); nothing waits for the device.
#pragma once
#include <string>
#include <utility>

#include "fallback.h"
#include "streams.h"
#include "view.h"

namespace fusedlstm::cuda {

class Host {
 public:
  // fallback: of the current device. request: as FUSEDLSTM_PLAN, or null.
  Host(Fallback& fallback, const char* request, cudaStream_t stream)
      : stream(stream), fallback_(fallback), request_(request ? request : "") {}
  virtual ~Host() = default;
  Host(const Host&) = delete;

  const cudaStream_t stream;

  // New memory for a contiguous tensor, of any contents, at a multiple of 16 bytes. `name` is for messages.
  virtual View allocate(const char* name, Dtype dtype, const Sizes& sizes) = 0;
  // Takes it back. What is enqueued on the current stream may use it still: only what is enqueued there later can get
  // it again.
  virtual void release(const View& allocated) noexcept = 0;
  // to = from, of equal sizes and any strides, rounded to the dtype of `to`.
  virtual void copy(const View& to, const View& from) = 0;
  // Of matrices: out = a b, or out += a b if `adds`. `out` has the dtype of a and b, or is float32 and they have 16
  // bits (no += then). Zeros where a has no columns. allow_tf32: for float32.
  virtual void multiply(const View& out, const View& a, const View& b, bool adds, bool allow_tf32) = 0;
  // out [columns] = the sum of the rows of a matrix.
  virtual void sum_rows(const View& out, const View& matrix) = 0;
  virtual void warn(const std::string& text) = 0;
  // Of the device.
  virtual StreamPool& streams() = 0;

  void zero(const View& contiguous) {
    if (contiguous.data)
      check(cudaMemsetAsync(contiguous.data, 0, static_cast<size_t>(contiguous.bytes()), stream), "zeros");
  }

  // The plan to launch, which may be STREAM.
  Choice choose(const Problem& problem) { return fallback_.choose(problem, request_); }
  // What to launch after the launch of a choice's resident kernel has failed; throws where nothing can replace it.
  Choice replace(const Choice& refused, const Problem& problem, cudaError_t error) {
    Fallback::Replacement replacement = fallback_.replace(refused, problem, error);
    if (!replacement.warning.empty()) warn(replacement.warning);
    return std::move(replacement.choice);
  }
  // The same of a recurrence with variants.
  VariedPlan choose_varied(const VariedProblem& problem) { return fallback_.choose_varied(problem, request_); }
  VariedPlan replace_varied(const VariedPlan& refused, cudaError_t error) {
    const Fallback::VariedReplacement replacement = fallback_.replace_varied(refused, error);
    if (!replacement.warning.empty()) warn(replacement.warning);
    return replacement.plan;
  }
  void launched(const Choice& choice) { fallback_.launched(choice.plan); }
  void launches_varied(const VariedKernel& kernel) { fallback_.launches_varied(kernel); }

 private:
  Fallback& fallback_;
  const std::string request_;
};

// A tensor in memory of its own, which the host takes back when this goes: once all that uses it is enqueued.
class Buffer : public View {
 public:
  Buffer() = default;
  Buffer(Host& host, const char* name, Dtype dtype, const Sizes& sizes)
      : View(host.allocate(name, dtype, sizes)), host_(&host) {}
  Buffer(Buffer&& other) noexcept : View(other), host_(std::exchange(other.host_, nullptr)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(static_cast<View&>(*this), static_cast<View&>(other));
    std::swap(host_, other.host_);
    return *this;
  }
  ~Buffer() {
    if (host_) host_->release(*this);
  }

 private:
  Host* host_ = nullptr;
};

// The view itself if it is contiguous, else a copy, which `memory` owns from then on.
inline View contiguous(Host& host, const char* name, const View& view, Buffer& memory) {
  if (view.is_contiguous()) return view;
  memory = Buffer(host, name, view.dtype, view.shape());
  host.copy(memory, view);
  return memory;
}

}  // namespace fusedlstm::cuda
