// A layer, or an ensemble in one launch, as the kernels read it, for the time of a pass.
#pragma once
#include <vector>

#include "layer.h"

namespace fusedlstm::cuda {

class PreparedLayer {
 public:
  // Throws std::runtime_error where a size is too large for the kernels.
  PreparedLayer(Host& host, const Layer& given);

  Host& host;
  Layer layer;  // the given one, with all that kernels read contiguous
  RowStates rows{};

  int64_t first_row(int64_t step) const {
    return layer.batch_sizes ? offsets_[static_cast<size_t>(step)] : step * layer.batch;
  }
  // The rows of one step of a [N, columns] matrix.
  View rows_of_step(const View& matrix, int64_t step) const {
    return matrix.narrow(0, first_row(step), layer.rows_at(step));
  }
  // The time step at a position in the order of running.
  int64_t time(int d, int64_t position) const { return d == 0 ? position : layer.steps - 1 - position; }

  // out = a b and out += a b.
  void multiply(const View& out, const View& a, const View& b) const {
    host.multiply(out, a, b, false, layer.allow_tf32);
  }
  void multiply_add(const View& out, const View& a, const View& b) const {
    host.multiply(out, a, b, true, layer.allow_tf32);
  }

  // Memory until the pass is over.
  View workspace(const char* name, Dtype dtype, const Sizes& sizes);
  // Of rows, in which those that are not run read as zeros.
  View rows_workspace(const char* name, Dtype dtype, const Sizes& sizes);
  // What both passes of kernels are told.
  LayerArgs arguments() const { return {rows, layer.dtype, layer.cell.kind, layer.cell.is_relu}; }

  // The view itself if it is contiguous, else a copy.
  View contiguous(const char* name, const View& view);

  // Launches the chosen resident kernel, or the best that the device does not refuse instead, which `choice` is then,
  // and fills in what it needs beside the tensors of the layer. False: there is none for all members at once, and
  // nothing was run.
  template <class Args>
  bool launch_resident(Choice& choice, Args& a, cudaError_t (*launch)(const Plan&, const Args&, cudaStream_t)) const {
    const Pass pass = choice.plan.shape.pass;
    Buffer weights[kMaxDirections];
    while (layer.is_resident(choice.plan)) {
      for (int d = 0; d < layer.directions; ++d)
        if (!a.weight_hh[d]) a.weight_hh[d] = resident_weight(d, pass == Pass::kBackward, weights[d]).data;
      Buffer exchange;  // without a dtype: four bytes each
      if (const int64_t bytes = exchange_bytes(choice.plan, rows))
        exchange = Buffer(host, "exchange", Dtype::kFloat32, {bytes / 4});
      a.exchange = exchange.data;
      const cudaError_t error = launch(choice.plan, a, host.stream);
      if (error == cudaSuccess) {
        host.launched(choice);
        return true;
      }
      choice = host.replace(choice, layer.problem(pass), error);
    }
    return false;
  }

 private:
  std::vector<Buffer> buffers_;
  std::vector<int64_t> offsets_;  // packed: the first row of each step

  void tabulate_rows();
  // W_hh as resident kernels read it: [G, H, pitch], or transposed [H, G, pitch], rows padded with zeros to 16 bytes;
  // of each member. Where it does not lie so already, it is copied to `memory`.
  View resident_weight(int d, bool is_transposed, Buffer& memory) const;
};

}  // namespace fusedlstm::cuda
