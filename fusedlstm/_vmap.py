"""The rules of torch.func.vmap for the layer operators: kernels, one call, and no loop in Python.

Members that share their weights are rows of one larger batch. Members with weights of their own, packed data, and
gradients of members are an ensemble.
"""

from __future__ import annotations

import functools
from itertools import chain

import torch

from fusedlstm import _private_torch, _transforms, reference
from fusedlstm._arguments import BackwardArguments, LayerArguments
from fusedlstm._namespace import NAMESPACE
from fusedlstm.cells import CELLS
from fusedlstm.ops import OPERATORS
from fusedlstm.reference import as_list


def _forward(operator, V, arguments, dims):
    layer, layer_dims = LayerArguments(*arguments), LayerArguments(*dims)
    if _shares_weights(layer_dims) and layer.batch_sizes is None:
        return _as_one_batch(operator, V, layer, layer_dims)
    return _as_ensemble(operator, V, arguments, dims, layer, layer_dims)


def _backward(operator, V, arguments, dims):
    """Gradients of members, or several for one result: those for the weights are each one's own."""
    given, given_dims = BackwardArguments.of(arguments), BackwardArguments.of(dims)
    needs_weights = any(given.needs[2:7])
    if _shares_weights(given_dims.layer) and given.layer.batch_sizes is None and not needs_weights:
        return _gradients_as_one_batch(operator, V, given, given_dims)
    return _as_ensemble(operator, V, arguments, dims, given.layer, given_dims.layer)


def _shares_weights(dims: LayerArguments) -> bool:
    return all(dim is None for kind in dims[2:7] for dim in kind)


def _as_ensemble(operator, V, arguments, dims, layer, layer_dims):
    """Call `operator`, of whose arguments some are those of `layer`, with V times as many members."""
    if layer_dims.batch_sizes is not None:
        raise NotImplementedError("fusedlstm: expected batch_sizes common to all members of a vmap, got one each")
    is_nested = layer.initial[0].dim() - (layer_dims.initial[0] is not None) == 4

    def in_front(argument, dim):
        if isinstance(argument, list):
            return list(map(in_front, argument, dim))
        if not isinstance(argument, torch.Tensor) or argument is layer.batch_sizes:
            return argument
        members = _members_first(argument, dim, V)
        return members.flatten(0, 1) if is_nested else members

    def unfolded(result):
        if isinstance(result, list):
            return list(map(unfolded, result))
        return result.unflatten(0, (V, result.size(0) // V)) if is_nested and result.dim() > 1 else result

    return map(unfolded, operator(*map(in_front, arguments, dims)))


def _as_one_batch(operator, V, layer, dims):
    """Call `operator` on V members with common weights as on V * B rows."""
    layer = _folded_layer(V, layer, dims)
    output, last, *kept = operator(*layer)
    T, B = layer.input.size(-3), layer.input.size(-2) // V

    def unfolded(rows):
        return rows.unflatten(-2, (V, B)).movedim(-3, 0)

    yield unfolded(output)
    yield list(map(unfolded, last))
    for rows in kept:  # [D, T * V * B, ...]
        yield rows.unflatten(-2, (T, V, B)).movedim(-3, 0).flatten(-3, -2)


def _gradients_as_one_batch(operator, V, given, dims):
    """The same of `<cell>_layer_backward`, for gradients that are not sums over rows."""
    layer = _folded_layer(V, given.layer, dims.layer)
    T, B = layer.input.size(-3), layer.input.size(-2) // V

    def of_steps(tensor, dim):
        """[D, T * B, ...] of members as [D, T * V * B, ...]."""
        if tensor is None:
            return None
        return _members_first(tensor, dim, V).unflatten(-2, (T, B)).movedim(0, -3).flatten(-4, -2)

    results = operator(
        _folded(V, given.incoming.output, dims.incoming.output),
        [_folded(V, *pair) for pair in zip(given.incoming.last, dims.incoming.last)],
        of_steps(given.incoming.carried, dims.incoming.carried),
        *layer,
        _folded(V, given.output, dims.output),
        of_steps(given.saved, dims.saved),
        of_steps(given.carried, dims.carried),
        given.needs,
    )

    def unfolded(result):
        if isinstance(result, list):
            return list(map(unfolded, result))
        return result.unflatten(-2, (V, B)).movedim(-3, 0) if result.dim() > 1 else result

    return map(unfolded, results)


def _folded_layer(V, layer, dims) -> LayerArguments:
    """A layer's arguments, of which the weights are common to all members, with V * B rows."""

    def states(name):
        return [_folded(V, *pair) for pair in zip(getattr(layer, name), getattr(dims, name))]

    return layer._replace(
        input=_folded(V, layer.input, dims.input),
        initial=states("initial"),
        lengths=_folded(V, layer.lengths, dims.lengths, batch=-1),
        reset=_folded(V, layer.reset, dims.reset, batch=-1),
        reset_state=states("reset_state"),
    )


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
        vmap = _private_torch.innermost_transform()
        level = vmap.level()
        values, dims = _unwrapped(arguments, lambda tensor: _private_torch.without_members(tensor, level))
        with _private_torch.below_vmap():
            if all(dim is None for dim in chain.from_iterable(map(as_list, dims))):
                return operator(*arguments)
            results = list(rule(operator, vmap.batch_size(), values, dims))
        return _wrapped(results, lambda tensor: _private_torch.with_members(tensor, 0, level))

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


def _batched_backward(name, *arguments):
    """`<cell>_layer_backward` under the older vmap, of is_grads_batched=True and jacobian(vectorize=True).

    Several gradients for one result; or, one such vmap inside another, the reference's.
    """
    outermost = 1

    def unwrap(tensor):
        if not _transforms.is_batched(tensor):
            return tensor, None
        return _private_torch.without_older_members(tensor, outermost, 1, 0), 0

    values, dims = _unwrapped(arguments, unwrap)
    if any(_transforms.is_batched(v) for value in values for v in as_list(value) if isinstance(v, torch.Tensor)):
        with _private_torch.with_autograd():
            return reference.layer_backward(CELLS[name], *arguments)
    batched = (v for value, dim in zip(values, dims) for v, d in zip(as_list(value), as_list(dim)) if d == 0)
    V = next(batched).size(0)
    results = _backward(OPERATORS[name].backward, V, values, dims)
    return _wrapped(results, lambda tensor: _private_torch.with_older_members(tensor, 0, outermost))


_library_rules = torch.library.Library(NAMESPACE, "IMPL")
for _name, _operators in OPERATORS.items():
    _register(_operators.layer, _forward)
    _register(_operators.inference, _forward)
    _register(_operators.backward, _backward)
    _library_rules.impl(_operators.backward, functools.partial(_batched_backward, _name), "Batched")
