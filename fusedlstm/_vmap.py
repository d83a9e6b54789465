"""The rules of torch.func.vmap for the layer operators: kernels, one call, and no loop in Python.

Members that share their weights are rows of one larger batch. Members with weights of their own, packed data, and
gradients of members are an ensemble.
"""

from __future__ import annotations

from itertools import chain

import torch
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

from fusedlstm import ops, reference
from fusedlstm.reference import BATCH_SIZES, as_list

_ROWS = slice(9, 13)  # of the arguments: lengths, reset, reset_h, reset_c


def _forward(operator, V, arguments, dims):
    shares_weights = all(dim is None for kind in dims[ops.LISTS] for dim in kind)
    if shares_weights and arguments[BATCH_SIZES] is None:
        return _as_one_batch(operator, V, arguments, dims)
    return _as_ensemble(operator, V, arguments, dims, first=0)


def _backward(operator, V, arguments, dims):
    """Gradients of members, or several for one result: those for the weights are each one's own."""
    return _as_ensemble(operator, V, arguments, dims, first=4)


def _as_ensemble(operator, V, arguments, dims, first):
    """Call `operator`, whose layer arguments begin at `first`, with V times as many members."""
    h_0, batch_sizes = first + 1, first + BATCH_SIZES
    if dims[batch_sizes] is not None:
        raise NotImplementedError("fusedlstm: expected batch_sizes common to all members of a vmap, got one each")
    is_nested = arguments[h_0].dim() - (dims[h_0] is not None) == 4

    def in_front(argument, dim):
        if isinstance(argument, list):
            return list(map(in_front, argument, dim))
        if not isinstance(argument, torch.Tensor):
            return argument
        members = _members_first(argument, dim, V)
        return members.flatten(0, 1) if is_nested else members

    def unfolded(result):
        if isinstance(result, list):
            return list(map(unfolded, result))
        return result.unflatten(0, (V, result.size(0) // V)) if is_nested and result.dim() > 1 else result

    call = list(map(in_front, arguments, dims))
    call[batch_sizes] = arguments[batch_sizes]
    return map(unfolded, operator(*call))


def _as_one_batch(operator, V, arguments, dims):
    """Call `operator` on V members with common weights as on V * B rows."""

    def folded(tensor, dim, batch=-2):
        if tensor is None:
            return None
        return _members_first(tensor, dim, V).movedim(0, batch - 1).flatten(batch - 1, batch)

    input, *state = map(folded, arguments[:3], dims[:3])
    rows = map(folded, arguments[_ROWS], dims[_ROWS], (-1, -1, -2, -2))  # in the first two, batch is last
    results = operator(input, *state, *arguments[ops.LISTS], None, *rows, arguments[-1])
    T, B = input.size(-3), input.size(-2) // V
    for result in results[:3]:
        yield result.unflatten(-2, (V, B)).movedim(-3, 0)
    for result in results[3:]:  # gates and cell states, [D, T * V * B, ...]
        yield result.unflatten(-2, (T, V, B)).movedim(-3, 0).flatten(-3, -2)


def _members_first(tensor, dim, V):
    if dim is None:
        return tensor.expand(V, *tensor.shape)
    return tensor if dim == 0 else tensor.movedim(dim, 0)  # operations under vmap are slow, even this one


def _register(operator, rule):
    """Make `rule` what `operator` does under vmap.

    rule(operator, V, arguments, dims) has for each tensor the dimension in which it has V members, or None, and returns
    results that have them in front; those without elements, for gradients that are not needed, have none.

    Written out instead of `torch.library.register_vmap`, whose general tree walks took longer than a small ensemble.
    """

    def under_vmap(*arguments):
        interpreter = retrieve_current_functorch_interpreter()
        level = interpreter.level()

        def unwrapped(argument):
            if isinstance(argument, list):
                pairs = list(map(unwrapped, argument))
                return [value for value, _ in pairs], [dim for _, dim in pairs]
            if isinstance(argument, torch.Tensor):
                return torch._C._functorch._unwrap_batched(argument, level)
            return argument, None

        def wrapped(result):
            if isinstance(result, list):
                return list(map(wrapped, result))
            return torch._C._functorch._add_batch_dim(result, 0, level) if result.dim() > 1 else result

        values, dims = zip(*map(unwrapped, arguments))
        with torch._C._ExcludeDispatchKeyGuard(_VMAP_KEYS):
            if all(dim is None for dim in chain.from_iterable(map(as_list, dims))):
                return operator(*arguments)
            results = list(rule(operator, interpreter.batch_size(), values, dims))
        return tuple(map(wrapped, results))

    _library_rules.impl(operator, under_vmap, "FuncTorchBatched")


def _batched_backward(*arguments):
    """`lstm_layer_backward` under the older vmap of is_grads_batched=True and jacobian(vectorize=True).

    That takes rules for no operator with lists: differentiates the reference, also where ops.py is below autograd.
    """
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False):
        return reference.lstm_layer_backward(*arguments)


_VMAP_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.FuncTorchBatched)
_library_rules = torch.library.Library("fusedlstm", "IMPL")
_register(ops.lstm_layer, _forward)
_register(ops.lstm_layer_inference, _forward)
_register(ops.lstm_layer_backward, _backward)
_library_rules.impl("lstm_layer_backward", _batched_backward, "Batched")
