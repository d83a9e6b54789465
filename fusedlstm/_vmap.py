"""The rules of torch.func.vmap for the layer operators: kernels, one call, and no loop in Python.

Members that share their weights are rows of one larger batch. Members with weights of their own, packed data, and
gradients of members are an ensemble.
"""

from __future__ import annotations

from itertools import chain

import torch
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

from fusedlstm import _transforms, ops, reference
from fusedlstm.reference import BATCH_SIZES, as_list

_ROWS = slice(9, 13)  # of the arguments: lengths, reset, reset_h, reset_c


def _forward(operator, V, arguments, dims):
    shares_weights = all(dim is None for kind in dims[ops.LISTS] for dim in kind)
    if shares_weights and arguments[BATCH_SIZES] is None:
        return _as_one_batch(operator, V, arguments, dims)
    return _as_ensemble(operator, V, arguments, dims, first=0)


def _backward(operator, V, arguments, dims):
    """Gradients of members, or several for one result: those for the weights are each one's own."""
    lists = slice(4 + ops.LISTS.start, 4 + ops.LISTS.stop)
    shares_weights = all(dim is None for kind in dims[lists] for dim in kind)
    if shares_weights and arguments[4 + BATCH_SIZES] is None and not any(arguments[-1][ops.LISTS]):
        return _gradients_as_one_batch(operator, V, arguments, dims)
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
    layer = _folded_layer(V, arguments, dims)
    results = operator(*layer)
    T, B = layer[0].size(-3), layer[0].size(-2) // V
    for result in results[:3]:
        yield result.unflatten(-2, (V, B)).movedim(-3, 0)
    for result in results[3:]:  # gates and cell states, [D, T * V * B, ...]
        yield result.unflatten(-2, (T, V, B)).movedim(-3, 0).flatten(-3, -2)


def _gradients_as_one_batch(operator, V, arguments, dims):
    """The same of `lstm_layer_backward`, for gradients that are not sums over rows."""
    layer = _folded_layer(V, arguments[4:-4], dims[4:-4])
    T, B = layer[0].size(-3), layer[0].size(-2) // V

    def of_steps(tensor, dim):
        """[D, T * B, ...] of members as [D, T * V * B, ...]."""
        if tensor is None:
            return None
        return _members_first(tensor, dim, V).unflatten(-2, (T, B)).movedim(0, -3).flatten(-4, -2)

    d_output, *d_states = (_folded(V, *pair) for pair in zip(arguments[:3], dims))
    output, gates, cell_states = arguments[-4:-1]
    results = operator(
        d_output, *d_states, of_steps(arguments[3], dims[3]), *layer, _folded(V, output, dims[-4]),
        of_steps(gates, dims[-3]), of_steps(cell_states, dims[-2]), arguments[-1],
    )  # fmt: skip
    for result in results:
        is_rows = isinstance(result, torch.Tensor) and result.dim() > 1
        yield result.unflatten(-2, (V, B)).movedim(-3, 0) if is_rows else result


def _folded_layer(V, arguments, dims):
    """A layer's arguments, of which the weights are common to all members, with V * B rows."""
    rows = (_folded(V, *row) for row in zip(arguments[_ROWS], dims[_ROWS], (-1, -1, -2, -2)))  # of two, batch is last
    input, *state = (_folded(V, *pair) for pair in zip(arguments[:3], dims))
    return input, *state, *arguments[ops.LISTS], None, *rows, arguments[-1]


def _folded(V, tensor, dim, batch=-2):
    """A tensor of members with them as rows: V * B of them in its dimension `batch`."""
    if tensor is None:
        return None
    return _members_first(tensor, dim, V).movedim(0, batch - 1).flatten(batch - 1, batch)


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
        values, dims = _unwrapped(arguments, lambda tensor: torch._C._functorch._unwrap_batched(tensor, level))
        with torch._C._ExcludeDispatchKeyGuard(_VMAP_KEYS):
            if all(dim is None for dim in chain.from_iterable(map(as_list, dims))):
                return operator(*arguments)
            results = list(rule(operator, interpreter.batch_size(), values, dims))
        return _wrapped(results, lambda tensor: torch._C._functorch._add_batch_dim(tensor, 0, level))

    _library_rules.impl(operator, under_vmap, "FuncTorchBatched")


def _unwrapped(arguments, unwrap):
    """The arguments without their members' dimension, and where that was."""

    def of_one(argument):
        if isinstance(argument, list):
            pairs = list(map(of_one, argument))
            return [value for value, _ in pairs], [dim for _, dim in pairs]
        return unwrap(argument) if isinstance(argument, torch.Tensor) else (argument, None)

    return zip(*map(of_one, arguments))


def _wrapped(results, wrap) -> tuple:
    def of_one(result):
        if isinstance(result, list):
            return list(map(of_one, result))
        return wrap(result) if result.dim() > 1 else result

    return tuple(map(of_one, results))


def _batched_backward(*arguments):
    """`lstm_layer_backward` under the older vmap, of is_grads_batched=True and jacobian(vectorize=True).

    Several gradients for one result; or, one such vmap inside another, the reference's.
    """
    level = _transforms.older_vmap_level()
    if level != 1:
        with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False):
            return reference.lstm_layer_backward(*arguments)

    def unwrap(tensor):
        if not _transforms.is_batched(tensor):
            return tensor, None
        return torch._remove_batch_dim(tensor, level, 1, 0), 0

    values, dims = _unwrapped(arguments, unwrap)
    V = next(value.size(0) for value, dim in zip(values, dims) if dim == 0)
    results = _backward(ops.lstm_layer_backward, V, values, dims)
    return _wrapped(results, lambda tensor: torch._add_batch_dim(tensor, 0, level))


_VMAP_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.FuncTorchBatched)
_library_rules = torch.library.Library("fusedlstm", "IMPL")
_register(ops.lstm_layer, _forward)
_register(ops.lstm_layer_inference, _forward)
_register(ops.lstm_layer_backward, _backward)
_library_rules.impl("lstm_layer_backward", _batched_backward, "Batched")
