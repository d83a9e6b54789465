// What may run a pass on a device: the kernels that fit, and cuDNN by PyTorch's own layer. The model says what it
// expects of each; who measures them knows better, and says so by PlanMemo::prefer.
//
// Plain C++. Also compiled into the Python module `_core`.
#pragma once
#include <string>

#include "plan.h"

namespace fusedlstm::cuda {

// A call as cuDNN would have it: all layers at once.
struct CudnnCall {
  int64_t features;  // of the first layer's input
  int layers;
  bool is_packed;
};

// What cuDNN takes for the pass of all layers, beside the input products, which are the same for all contenders; by the
// model, which knows PyTorch's rules for the choice of its algorithm (aten/src/ATen/native/cudnn/RNN.cpp, get_algo).
// The weights are copied for it in every call, as those of separate parameters are.
double cudnn_microseconds(const Problem& problem, const Device& device, const CudnnCall& call);

// What a plan may take if the model is as wrong as it may be.
double doubted_microseconds(const Plan& plan, const Device& device);

// As JSON, for Python: {"plans": [{"request", "text", "microseconds", "doubted"}, ...], "stack": doubted microseconds,
// "cudnn": microseconds}, plans as by plans_that_fit, theirs for one of the layers; stack: the plan of all, with the
// products between them.
std::string contenders_json(const Problem& problem, const Device& device, const CudnnCall& call);

}  // namespace fusedlstm::cuda
