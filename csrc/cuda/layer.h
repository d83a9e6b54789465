// One layer on a CUDA device: its arguments as the kernels take them, its workspaces, and the two passes over it.
//
// The input projection is one product per direction before the recurrence; the gradients of input and weights are
// products after it, from d_gates of all steps. In between runs one resident kernel, or STREAM. Everything is on the
// current stream of the input's device; nothing waits for the device.
#pragma once
#include <limits>

#include "../layer_tensors.h"
#include "choice.h"
#include "launch.h"
#include "products.h"

namespace fusedlstm::gpu {

Dtype dtype_of(ScalarType dtype);

// Whether the kernels can take it as an int.
constexpr bool is_int(int64_t size) {
  return size <= std::numeric_limits<int>::max();
}

// What is member `index`'s of a tensor: the tensor itself where there is one layer, or no such tensor.
Tensor member_of(const LayerTensors& t, const Tensor& tensor, int64_t index);

// What is planned for prepared tensors of at least one row, of all members.
Problem problem_of(const LayerTensors& t, bool allow_tf32, Pass pass);

struct Layer {
  LayerTensors t;
  bool allow_tf32;
  RowStates rows{};

  // Prepared. Only resident kernels whose plan says so can run an ensemble.
  Layer(LayerTensors tensors, bool allow_tf32);

  int ordinal() const { return t.input.get_device(); }
  bool empty() const { return t.rows == 0; }
  // Dense rows beyond a length are not run: what the kernels do not write there must be zero.
  bool has_idle_rows() const { return t.lengths.has_value(); }
  int64_t rows_at(int64_t step) const {
    return t.batch_sizes ? t.batch_sizes->const_data_ptr<int64_t>()[step] : t.batch;
  }
  int64_t first_row(int64_t step) const { return t.batch_sizes ? offsets[static_cast<size_t>(step)] : step * t.batch; }
  int64_t time(size_t d, int64_t position) const { return d == 0 ? position : t.steps - 1 - position; }
  // Rows of one step of a [N, columns] tensor.
  Tensor rows_of_step(const Tensor& all, int64_t step) const;

  // out = a b and out += a b, see products.h.
  void multiply(const Tensor& out, const Tensor& a, const Tensor& b) const { gpu::multiply(out, a, b, allow_tf32); }
  void multiply_add(const Tensor& out, const Tensor& a, const Tensor& b) const {
    gpu::multiply_add(out, a, b, allow_tf32);
  }

  // A new tensor of `sizes` in which rows that are not run read as zeros.
  Tensor new_rows(const Sizes& sizes, ScalarType dtype) const;
  // Workspace of GRID: an int32 tensor, so that it comes from torch's caching allocator.
  Tensor exchange(const Plan& plan) const;
  // W_hh as resident kernels read it: [4, H, pitch], or transposed [H, 4, pitch], rows padded with zeros to 16 bytes;
  // of each member.
  Tensor resident_weight(size_t d, bool is_transposed) const;

  // Launches the best resident kernel that the device does not refuse, and fills in what it needs beside the tensors of
  // the layer. False: there is none, and nothing was run. Workspaces are kept until the launch: from then on the
  // caching allocator orders reuse by the stream.
  template <class Args>
  bool launch_resident(Pass pass, Args& a, cudaError_t (*launch)(const Plan&, const Args&, cudaStream_t),
                       cudaStream_t stream) const {
    const Problem problem = problem_of(t, allow_tf32, pass);
    Tensors weights;
    for (Choice choice = choose(problem, ordinal()); choice.plan.shape.transport != Transport::kStream;) {
      if (choice.plan.members != t.members) return false;
      for (size_t d = weights.size(); d < t.weight_hh.size(); ++d) {
        weights.push_back(resident_weight(d, pass == Pass::kBackward));
        a.weight_hh[d] = weights.back().data_ptr();
      }
      const Tensor memory = exchange(choice.plan);
      a.exchange = memory.data_ptr();
      const cudaError_t error = launch(choice.plan, a, stream);
      if (error == cudaSuccess) return true;
      choice = replace(choice, problem, ordinal(), error);
    }
    return false;
  }

 private:
  std::vector<int64_t> offsets;  // packed: the first row of each step
  Tensor row_table;              // packed: the same [T], then lengths [B], on the device

  void tabulate_rows();
};

// The first `count` rows of a tensor.
Tensor first_rows(const Tensor& all, int64_t count);

// Allocated by the caller; gates and cell_states are undefined where they are not wanted. The rows of steps that are
// not run are zeros already.
struct ForwardResults {
  Tensor output, h_n, c_n, gates, cell_states;
};

// False: an ensemble that the device refuses to launch, of which nothing was run.
bool run_forward(const Layer& layer, ForwardResults& results);

struct OutputGradients {
  OptionalTensor output, h_n, c_n, cell_states;
};

// What the recurrence backward leaves behind, for the products after it.
struct BackwardRecurrence {
  // Of an ensemble, with the members in front.
  Tensor d_gates;               // [D, N, 4H]
  Tensor d_projected;           // [D, N, P], with a projection
  Tensor d_reset_h, d_reset_c;  // [D, B, R], [D, B, H], in the accumulation dtype; undefined without resets
};

// Writes d_h_0 [D, B, R] and d_c_0 [D, B, H] too. Nothing: as false of run_forward.
std::optional<BackwardRecurrence> run_backward(const Layer& layer, const OutputGradients& d_out, const Tensor& gates,
                                               const Tensor& cell_states, const Tensor& d_h_0, const Tensor& d_c_0);

struct Gradients {
  Tensor input, h_0, c_0;
  Tensors weight_ih, weight_hh, bias_ih, bias_hh, weight_hr;
  Tensor reset_h, reset_c;
};

// The products after the recurrence, into `grads`: gradients of the input and of everything that all steps share. Of
// one layer.
void finish_gradients(const Layer& layer, const BackwardRecurrence& r, const Tensor& output, const Tensor& gates,
                      const Tensor& cell_states, const std::vector<bool>& needs, Gradients& grads);

}  // namespace fusedlstm::gpu
