// Layers by themselves and in stacks, from calls to runs.
#pragma once

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include "layer_call.h"
#include "run_abreast.h"
#include "run_members.h"

namespace fusedlstm::cpu {

// Runs all members of a layer.
template <class Call>
void run_layer(const Call& call) {
  using Args = typename Call::Args;
  const auto run = [kernel = call.kernel()](std::span<const Args> members) {
    run_members<Args>(members, kernel.pass, kernel.bytes, kernel.run);
  };
  if (call.in.t.members == 1) {  // without an allocation
    const Args only = call.args(0);
    return run({&only, 1});
  }
  std::vector<Args> members;
  members.reserve(size_t(call.in.t.members));
  for (int64_t m = 0; m < call.in.t.members; ++m) members.push_back(call.args(m));
  run(members);
}

// Runs `count` layers of a stack, with as many beside each other as there are threads for, where that is faster.
//
//     make(calls, l, made)   adds the call of the l-th that runs, which reads what the one before it makes, the first
//                            none
//     keep(call)             takes the results, in the same order
template <class Call, class Make, class Keep>
void run_layers(size_t count, Make make, Keep keep) {
  Tensor made = undefined();
  std::vector<Call> calls;
  for (size_t l = 0, end = 0; l < count; l = end) {
    calls.clear();
    const auto add = [&] {
      make(calls, end++, made);
      made = calls.back().made();
    };
    add();
    const LayerInputs& first = calls[0].in;
    const size_t abreast = end < count ? layers_abreast(first.shape(), first.t.rows, calls[0].kernel().pass, count) : 1;
    while (end < std::min(l + abreast, count)) add();
    if (calls.size() == 1)
      run_layer(calls[0]);
    else
      run_abreast(calls);
    for (Call& call : calls) keep(call);
  }
}

}  // namespace fusedlstm::cpu
