// A call of a layer's operator as its kernels are told of it: tensors to plain argument structs, results allocated.
#pragma once

#include <cstring>
#include <utility>
#include <vector>

#include "call/results.h"
#include "cells/all.h"
#include "isa.h"
#include "plan.h"

namespace fusedlstm::cpu {

// What forward and backward kernels are told alike; owns the row tables that the structs point to.
struct LayerInputs {
  const NamedCell& cell;
  CheckedLayer t;
  std::vector<int64_t> offsets, lengths;

  LayerInputs(const NamedCell& cell, LayerArguments&& arguments) : cell(cell), t(std::move(arguments), cell.sizes) {
    read_rows();
  }
  // A layer with weights in a form of their own, of these sizes.
  LayerInputs(const NamedCell& cell, LayerArguments&& arguments, const WeightSizes& weights)
      : cell(cell), t(std::move(arguments), cell.sizes, weights) {
    read_rows();
  }

  void read_rows() {
    if (t.batch_sizes) {
      const auto* sizes = t.batch_sizes->const_data_ptr<int64_t>();
      offsets.assign(1, 0);
      lengths.assign(size_t(t.batch), 0);
      for (int64_t s = 0; s < t.steps; ++s) {
        offsets.push_back(offsets.back() + sizes[s]);
        for (int64_t b = 0; b < sizes[s]; ++b) ++lengths[size_t(b)];
      }
    } else if (t.lengths) {
      const auto* given = t.lengths->const_data_ptr<int64_t>();
      for (int64_t b = 0; b < t.members * t.batch; ++b)
        STD_TORCH_CHECK(given[b] >= 0 && given[b] <= t.steps, "fusedlstm: expected lengths between 0 and ", t.steps,
                        ", got ", given[b], " at index ", b);
    }
  }

  Shape shape() const { return {t.steps, t.batch, t.features, t.hidden, t.proj, t.directions, cell.sizes.gates}; }

  // Where a member's part of a tensor begins; null if the tensor is empty.
  void* part(const Tensor& x, int64_t member) const {
    auto* data = static_cast<char*>(x.data_ptr());
    return data && t.lead > 0 ? data + member * x.stride(0) * x.element_size() : data;
  }
  void* part(const Tensors& list, size_t index, int64_t member) const {
    return list.empty() ? nullptr : part(list[index], member);
  }

  // The same of this layer in a tensor of all layers of its stack.
  void* own_part(const Tensor& x, int64_t member) const {
    auto* data = static_cast<char*>(part(x, member));
    return data && t.place > 0 ? data + t.first_row() * x.stride(t.lead) * x.element_size() : data;
  }

  State state(const Tensor& s, int64_t member) const {
    return {own_part(s, member), s.stride(t.lead), s.stride(t.lead + 1)};
  }
  State state(const OptionalTensor& s, int64_t member) const { return s ? state(*s, member) : State{}; }

  RowData rows_of(const Tensor& x, int64_t member) const {
    if (t.batch_sizes) return {part(x, member), 0, x.stride(t.lead)};
    return {part(x, member), x.stride(t.lead), x.stride(t.lead + 1)};
  }

  // What the kernels are told of one member, but for results.
  template <class Args>
  Args arguments(int64_t member) const {
    Args a{};
    a.shape = shape();
    a.row_count = t.rows;
    a.rows.offsets = t.batch_sizes ? offsets.data() : nullptr;
    a.rows.lengths = t.batch_sizes ? lengths.data()
                     : t.lengths   ? static_cast<const int64_t*>(part(*t.lengths, member))
                                   : nullptr;
    a.rows.reset = t.reset ? static_cast<const bool*>(part(*t.reset, member)) : nullptr;
    a.rows.reset_step = t.reset ? t.reset->stride(t.lead) : 0;
    a.rows.reset_batch = t.reset ? t.reset->stride(t.lead + 1) : 0;
    a.input = rows_of(t.input, member);
    const Tensors& initial = t.states();
    for (size_t i = 0; i < initial.size(); ++i) {
      a.initial[i] = state(initial[i], member);
      if (!t.reset_state.empty()) a.reset_state[i] = state(t.reset_state[i], member);
    }
    a.is_relu = cell.is_relu;
    for (size_t d = 0; d < t.weight_ih.size(); ++d)
      a.weights[d] = {part(t.weight_ih, d, member), part(t.weight_hh, d, member), part(t.bias_ih, d, member),
                      part(t.bias_hh, d, member), part(t.weight_hr, d, member)};
    return a;
  }

  const LayerKernels& kernels() const { return active_kernels(cell.kind, dtype_of(t.dtype)); }
};

// Where a member's results go, which inference and training have.
inline void set_results(ForwardArgs& a, const LayerInputs& in, const LayerResults& r, int64_t member) {
  a.output = in.part(r.output, member);
  const Tensors& last = last_states(in.t, r);
  for (size_t i = 0; i < last.size(); ++i) a.last[i] = in.own_part(last[i], member);
}

// What runs a pass of a layer.
template <class Args>
struct PassKernel {
  Pass pass;
  int64_t (*bytes)(const Args&, const Plan&);
  void (*run)(const Args&, const Plan&, Share&, char*);
};

// A layer that is to run forward; must outlive the run.
class ForwardCall {
 public:
  using Args = ForwardArgs;
  LayerInputs in;
  LayerResults results;

  ForwardCall(const NamedCell& cell, LayerArguments&& arguments, bool is_training)
      : in(cell, std::move(arguments)),
        results(new_results(in.t, is_training, false)),
        kernels_(in.kernels()),
        is_training_(is_training) {}
  // Inference with frozen weights: the panels, and the kernels that they are for.
  ForwardCall(const NamedCell& cell, LayerArguments&& arguments, const WeightSizes& weights,
              const LayerKernels& kernels, const char* panels)
      : in(cell, std::move(arguments), weights),
        results(new_results(in.t, false, false)),
        kernels_(kernels),
        frozen_(panels) {}

  ForwardArgs args(int64_t member) const {
    ForwardArgs a = in.arguments<ForwardArgs>(member);
    a.frozen = frozen_;
    set_results(a, in, results, member);
    a.saved = is_training_ ? in.own_part(results.saved, member) : nullptr;
    a.carried = is_training_ ? in.own_part(results.carried, member) : nullptr;
    return a;
  }
  PassKernel<ForwardArgs> kernel() const {
    return {frozen_ ? Pass::kFrozen : Pass::kForward, kernels_.forward_bytes, kernels_.forward};
  }
  // What the next layer of a stack reads.
  const Tensor& made() const { return results.output; }

 private:
  const LayerKernels& kernels_;
  bool is_training_ = false;
  const char* frozen_ = nullptr;
};

// A layer whose gradients are to be computed; must outlive the run, and be finished after it.
class BackwardCall {
 public:
  using Args = BackwardArgs;
  LayerInputs in;
  LayerGradients gradients;

  BackwardCall(const NamedCell& cell, BackwardArguments& arguments)
      : in(cell, std::move(arguments.layer)),
        gradients(new_gradients(in.t, arguments.needs)),
        kernels_(in.kernels()),
        incoming_(arguments, in.t),
        has_bias_ih_(arguments.needs[kBiasIh] && !in.t.bias_ih.empty()),
        has_bias_hh_(arguments.needs[kBiasHh] && !in.t.bias_hh.empty()),
        is_joined_(in.t.cell.apart() == 0) {}

  BackwardArgs args(int64_t m) const {
    const CheckedLayer& t = in.t;
    const LayerGradients& g = gradients;
    // Where no gate is apart, the two biases enter as a sum: their gradients are equal, but must not share memory.
    const Tensors& d_bias_ih = has_bias_ih_ || !is_joined_ ? g.bias_ih : g.bias_hh;
    BackwardArgs a = in.arguments<BackwardArgs>(m);
    if (incoming_.d_output) a.d_output = in.rows_of(*incoming_.d_output, m);
    for (size_t i = 0; i < t.states().size(); ++i) {
      a.d_last[i] = in.state(incoming_.d_last[i], m);
      a.d_initial[i] = in.own_part(g.initial[i], m);
      a.d_reset_state[i] = in.part(g.reset_state, i, m);
    }
    a.output = in.part(incoming_.output, m);
    a.saved = in.own_part(incoming_.saved, m);
    a.carried = in.own_part(incoming_.carried, m);
    a.d_carried = incoming_.d_carried ? in.part(*incoming_.d_carried, m) : nullptr;
    a.d_input = in.part(g.input, m);
    for (size_t d = 0; d < size_t(t.directions); ++d) {
      a.d_weight_ih[d] = in.part(g.weight_ih, d, m);
      a.d_weight_hh[d] = in.part(g.weight_hh, d, m);
      a.d_bias_ih[d] = in.part(d_bias_ih, d, m);
      a.d_bias_hh[d] = is_joined_ ? nullptr : in.part(g.bias_hh, d, m);
      a.d_weight_hr[d] = in.part(g.weight_hr, d, m);
    }
    return a;
  }

  PassKernel<BackwardArgs> kernel() const { return {Pass::kBackward, kernels_.backward_bytes, kernels_.backward}; }
  const Tensor& made() const { return gradients.input; }

  void finish() {
    if (!is_joined_ || !has_bias_ih_ || !has_bias_hh_) return;
    for (size_t d = 0; d < size_t(in.t.directions); ++d) {
      const Tensor &from = gradients.bias_ih[d], &to = gradients.bias_hh[d];
      std::memcpy(to.data_ptr(), from.data_ptr(), size_t(from.numel() * from.element_size()));
    }
  }

 private:
  const LayerKernels& kernels_;
  CheckedIncoming incoming_;
  bool has_bias_ih_, has_bias_hh_, is_joined_;
};

}  // namespace fusedlstm::cpu
