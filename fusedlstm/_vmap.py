"""The rules of torch.func.vmap for the layer operators: kernels, and no loop over time in Python.

Members that share their weights are rows of one larger batch: one call. Members with weights of
their own (ensembles), and packed data, are one call each.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

from fusedlstm import ops

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

        def member(k, argument, dim):
            if isinstance(argument, list):
                return [member(k, tensor, d) for tensor, d in zip(argument, dim)]
            return argument if dim is None else argument.select(dim, k)

        calls = [operator(*(member(k, a, d) for a, d in zip(arguments, in_dims))) for k in range(V)]
        results = tuple(map(torch.stack, zip(*calls)))
        return results, (0,) * len(results)

    return rule


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
