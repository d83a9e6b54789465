// Forward: level l is layer l. Each part's input product, then its recurrence.
#include <deque>

#include "layer_forward.h"
#include "stack.h"
#include "wavefront.h"

namespace fusedlstm::cuda {
namespace {

struct Level {
  PreparedLayer p;
  ForwardArgs a;
  ResidentMemory resident;
  Buffer pre_gates;  // of a part: the next one's are made when it has been run
  Border border;

  Level(Host& host, const Layer& layer, const ForwardResults& results, const Plan& plan)
      : p(host, layer), a(forward_arguments(p, results)), border(p, a) {
    p.prepare_resident(plan, a, resident);
    const int64_t steps = (layer.steps + plan.parts - 1) / plan.parts;  // of the longest part
    int64_t rows = 0;
    for (int64_t t = 0; t < steps; ++t) rows += layer.rows_at(t);  // packed: the first steps have the most
    pre_gates = Buffer(host, "pre_gates", layer.acc_dtype(), {rows, layer.cell.sizes.gates * layer.hidden});
  }
  Level(const Level&) = delete;
};

cudaError_t run_abreast(Host& host, std::span<const Layer> layers, std::span<const ForwardResults> results,
                        const Plan& plan) {
  std::deque<Level> levels;
  for (size_t l = 0; l < layers.size(); ++l) levels.emplace_back(host, layers[l], results[l], plan);
  Wavefront wavefront(host, static_cast<int>(levels.size()));
  const auto feed = [&](int l, int i) {
    Level& level = levels[static_cast<size_t>(l)];
    const Part part = part_of(level.p.layer.steps, plan.parts, i);
    level.a.rows.begin = part.begin;
    level.a.rows.end = part.end;
    project_input(level.p, 0, level.pre_gates, level.a);
  };
  const auto launch = [&](int l, int, cudaStream_t stream) {
    return launch_forward(plan, levels[static_cast<size_t>(l)].a, stream);
  };
  return wavefront.run(plan.parts, feed, launch);
}

// As many as run abreast.
void run_group(Host& host, std::span<const Layer> layers, std::span<const ForwardResults> results, Choice& choice) {
  if (layers.size() > 1) {
    const cudaError_t error = run_abreast(host, layers, results, choice.plan);
    if (error == cudaSuccess) return host.launched(choice);
    choice = host.replace(choice, layers[0].problem(Pass::kForward), error);
  }
  for (size_t l = 0; l < layers.size(); ++l) run_forward(host, layers[l], results[l], choice);
}

}  // namespace

void run_forward(Host& host, std::span<const Layer> layers, std::span<const ForwardResults> results, Choice& choice) {
  for (size_t first = 0; first < layers.size();) {
    const size_t abreast = static_cast<size_t>(choice.plan.abreast);
    run_group(host, group_of(layers, first, abreast), group_of(results, first, abreast), choice);
    first += abreast;
  }
}

}  // namespace fusedlstm::cuda
