"""The rules of torch.func.vmap for the layer operators: kernels, and no loop over time in Python.

Members that share their weights are rows of one larger batch: one call. Members with weights of
their own (ensembles), packed data, and gradients of members are one call each.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

from fusedlstm import ops, reference

# Arguments by place, see ops.py.
_BATCH_SIZES, _LENGTHS = 8, 9


def is_only_transform() -> bool:
    """Whether all active transforms are vmap, for which the operators have rules."""
    if forward_ad._current_level >= 0 or torch.compiler.is_compiling():
        return False  # Dynamo cannot ask which transforms are active
    transforms = torch._C._functorch.get_interpreter_stack() or []
    return all(t.key() == torch._C._functorch.TransformType.Vmap for t in transforms)


def _rule(operator):
    def rule(info, in_dims, *arguments):
        V = info.batch_size
        shares_weights = all(dim is None for dims in in_dims[ops.LISTS] for dim in dims)
        if shares_weights and arguments[_BATCH_SIZES] is None:
            return _as_one_batch(operator, V, in_dims, arguments)
        return _one_by_one(operator, V, in_dims, arguments)

    return rule


def _backward_rule(info, in_dims, *arguments):
    """Gradients of members, or several for one result: those for the weights are each one's own."""
    return _one_by_one(ops.lstm_layer_backward, info.batch_size, in_dims, arguments)


def _one_by_one(operator, V, in_dims, arguments):
    def member(k, argument, dim):
        if dim is None:
            return argument
        if isinstance(argument, list):
            return [member(k, tensor, d) for tensor, d in zip(argument, dim)]
        return argument.select(dim, k)

    def stacked(results):
        return list(map(stacked, zip(*results))) if isinstance(results[0], list) else torch.stack(results)

    calls = [operator(*(member(k, a, d) for a, d in zip(arguments, in_dims))) for k in range(V)]
    results = tuple(map(stacked, zip(*calls)))
    return results, tuple([0] * len(r) if isinstance(r, list) else 0 for r in results)


def _as_one_batch(operator, V, in_dims, arguments):
    """Call `operator` on V members with common weights as on V * B rows."""

    def folded(place):
        tensor, dim = arguments[place], in_dims[place]
        if tensor is None:
            return None
        tensor = tensor.expand(V, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        batch = 0 if place == _LENGTHS else 1  # lengths are [B]; in all others the batch is second
        return tensor.movedim(0, batch).flatten(batch, batch + 1)

    input, *state = map(folded, range(3))
    rows = map(folded, range(_LENGTHS, _LENGTHS + 4))
    results = operator(input, *state, *arguments[ops.LISTS], None, *rows, arguments[-1])
    T, B = input.size(0), input.size(1) // V
    unfolded = [result.unflatten(1, (V, B)) for result in results[:3]]
    for result in results[3:]:  # gates and cell states, [D, T * V * B, ...]
        unfolded.append(result.unflatten(1, (T, V, B)).transpose(1, 2).flatten(2, 3))
    return tuple(unfolded), (1,) * len(unfolded)


torch.library.register_vmap("fusedlstm::lstm_layer", _rule(ops.lstm_layer))
torch.library.register_vmap("fusedlstm::lstm_layer_inference", _rule(ops.lstm_layer_inference))
torch.library.register_vmap("fusedlstm::lstm_layer_backward", _backward_rule)


def _batched_backward(*arguments):
    """`lstm_layer_backward` under the older vmap of is_grads_batched=True and jacobian(vectorize=True).

    That takes rules for no operator with lists: differentiates the reference, also where ops.py is below autograd.
    """
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False):
        return reference.lstm_layer_backward(*arguments)


_library_rules = torch.library.Library("fusedlstm", "IMPL")
_library_rules.impl("lstm_layer_backward", _batched_backward, "Batched")
