// Backward: level 0 is the uppermost layer. Each part's gradient of the output, from the layer above, then its
// recurrence; all that is a sum over all steps comes after all recurrences.
#include <deque>

#include "layer_backward.h"
#include "stack.h"
#include "wavefront.h"

namespace fusedlstm::cuda {
namespace {

struct Level {
  PreparedLayer p;
  BackwardRecurrence r;
  BackwardArgs a;
  ResidentMemory resident;
  Border border;

  Level(Host& host, const Layer& layer, const Incoming& in, const Gradients& grads, const Plan& plan)
      : p(host, layer), a(backward_arguments(p, in, grads, r)), border(p, a) {
    p.prepare_resident(plan, a, resident);
  }
  Level(const Level&) = delete;
};

// The gradient of the rows of some steps of the layer's input.
void multiply_input_gradient(const Level& level, const View& d_x, const Part& part) {
  const PreparedLayer& p = level.p;
  const int64_t first = p.first_row(part.begin), rows = p.first_row(part.end) - first;
  p.multiply(d_x.narrow(0, first, rows), level.r.d_from_input[0].narrow(0, first, rows), p.layer.weight_ih[0]);
}

// levels: empty, and filled with what the recurrences leave.
cudaError_t run_abreast(Host& host, std::span<const Layer> layers, std::span<const Incoming> in,
                        std::span<const Gradients> grads, const Plan& plan, std::deque<Level>& levels) {
  std::vector<Buffer> between;  // d_output of each level but the first
  for (size_t l = 0; l < layers.size(); ++l) {
    const Layer& layer = layers[l];
    Incoming own = in[l];
    if (l > 0) {
      between.emplace_back(host, "d_output", layer.dtype, Sizes{layer.rows, layer.recurrent()});
      own.d_output =
          layer.batch_sizes ? between.back() : between.back().as({layer.steps, layer.batch, layer.recurrent()});
    }
    levels.emplace_back(host, layer, own, grads[l], plan);
  }
  Wavefront wavefront(host, static_cast<int>(levels.size()));
  const auto feed = [&](int l, int i) {
    Level& level = levels[static_cast<size_t>(l)];
    const Part part = part_of(level.p.layer.steps, plan.parts, plan.parts - 1 - i);
    level.a.rows.begin = part.begin;
    level.a.rows.end = part.end;
    level.a.rows.row_before = part.begin > 0 ? static_cast<int>(level.p.first_row(part.begin - 1)) : 0;
    if (l > 0) multiply_input_gradient(levels[static_cast<size_t>(l - 1)], between[static_cast<size_t>(l - 1)], part);
  };
  const auto launch = [&](int l, int, cudaStream_t stream) {
    return launch_backward(plan, levels[static_cast<size_t>(l)].a, stream);
  };
  return wavefront.run(plan.parts, feed, launch);
}

// As many as run abreast.
void run_group(Host& host, std::span<const Layer> layers, std::span<const Incoming> in,
               std::span<const Gradients> grads, Choice& choice) {
  if (layers.size() == 1) return run_backward(host, layers[0], in[0], grads[0], choice);
  std::deque<Level> levels;
  const cudaError_t error = run_abreast(host, layers, in, grads, choice.plan, levels);
  if (error != cudaSuccess) {
    levels.clear();
    choice = host.replace(choice, layers[0].problem(Pass::kBackward), error);
    return run_backward(host, layers, in, grads, choice);
  }
  host.launched(choice);
  for (size_t l = 0; l < layers.size(); ++l) {
    finish_gradients(levels.front().p, levels.front().r, in[l], grads[l]);
    levels.pop_front();
  }
}

}  // namespace

void run_backward(Host& host, std::span<const Layer> layers, std::span<const Incoming> in,
                  std::span<const Gradients> grads, Choice& choice) {
  std::vector<Incoming> own_in(in.begin(), in.end());
  std::vector<Gradients> own_grads(grads.begin(), grads.end());
  Buffer above;  // the gradient of the input of the group before
  for (size_t first = 0; first < layers.size();) {
    const size_t abreast = static_cast<size_t>(choice.plan.abreast), next = first + abreast;
    if (first > 0) own_in[first].d_output = above;
    Buffer below;
    if (next < layers.size()) {
      const Layer& last = layers[next - 1];
      below = Buffer(host, "d_input", last.dtype, last.input.shape());
      own_grads[next - 1].input = below;
    }
    run_group(host, group_of(layers, first, abreast), group_of(std::span<const Incoming>(own_in), first, abreast),
              group_of(std::span<const Gradients>(own_grads), first, abreast), choice);
    above = std::move(below);
    first = next;
  }
}

}  // namespace fusedlstm::cuda
