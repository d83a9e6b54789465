// A layer, or an ensemble in one launch, as the kernels read it, for the time of a pass.
#pragma once
#include <vector>

#include "layer.h"

namespace fusedlstm::cuda {

// What a resident kernel reads beside the tensors of the layer.
struct ResidentMemory {
  Buffer weights[kMaxDirections], exchange;
};

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
  LayerArgs arguments() const { return {rows, layer.dtype, layer.cell.kind, layer.cell.is_relu, {}}; }

  // The view itself if it is contiguous, else a copy.
  View contiguous(const char* name, const View& view);

  // Fills in what the plan's kernel needs beside the tensors of the layer. weight_hh is the same for all plans of a
  // pass.
  template <class Args>
  void prepare_resident(const Plan& plan, Args& a, ResidentMemory& memory) const {
    for (int d = 0; d < layer.directions; ++d)
      if (!a.weight_hh[d])
        a.weight_hh[d] = resident_weight(d, plan.shape.pass == Pass::kBackward, memory.weights[d]).data;
    const int64_t bytes = exchange_bytes(plan, rows);
    // Without a dtype: four bytes each.
    memory.exchange = bytes > 0 ? Buffer(host, "exchange", Dtype::kFloat32, {bytes / 4}) : Buffer();
    a.exchange = memory.exchange.data;
  }

  // Launches the chosen resident kernel, or the best that the device does not refuse instead, which `choice` is then.
  // False: there is none for all members at once, and nothing was run.
  template <class Args>
  bool launch_resident(Choice& choice, Args& a, cudaError_t (*launch)(const Plan&, const Args&, cudaStream_t)) const {
    const Pass pass = choice.plan.shape.pass;
    ResidentMemory memory;
    while (layer.is_resident(choice.plan)) {
      prepare_resident(choice.plan, a, memory);
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
  std::vector<int64_t> offsets_;  // packed: the first row of each step, and behind the last

  void tabulate_rows();
  // W_hh, with a projection W_hh W_hr, as resident kernels read it: [G, H, pitch], or transposed [H, G, pitch], rows
  // padded with zeros to 16 bytes; of each member. Where it does not lie so already, it is in `memory`.
  View resident_weight(int d, bool is_transposed, Buffer& memory) const;
};

// The states between two parts of the steps of a layer in one direction, for as long as parts are run. Without a
// projection, so that all have one size: they share an allocation.
class Border {
 public:
  Border(const PreparedLayer& p, LayerArgs& a)
      : states_(p.host, "border", p.layer.acc_dtype(), {p.layer.cell.sizes.states, p.layer.batch, p.layer.hidden}) {
    for (int i = 0; i < p.layer.cell.sizes.states; ++i) a.border[i] = states_[i].data;
  }

 private:
  const Buffer states_;
};

}  // namespace fusedlstm::cuda
