"""The derivatives of the operators, as autograd functions; and what calls them.

Written out instead of `torch.library.register_autograd`, which flattens lists of tensors by a general tree walk in
every call: that took longer than a whole small layer. Arguments here are the operator's, as one tuple, then all that
can have gradients, flat: of a layer input, h_0, c_0, the lists' elements, reset_h, reset_c.

The functions of torch.func transforms (vjp, grad, jacrev) do the same in the form that those ask for. Calling them
takes longer, since PyTorch inspects their signatures each time.
"""

from __future__ import annotations

import functools
from itertools import accumulate, chain

import torch

from fusedlstm import _transforms, ops, reference
from fusedlstm._second_order import needs_graph, of_one_step, second_order
from fusedlstm.reference import DIFFERENTIABLE, as_list


class _Layer(torch.autograd.Function):
    """`lstm_layer` with its derivative."""

    # No setup_context: with it, every call of apply inspects the signature, for 50 microseconds.
    @staticmethod
    def forward(ctx, arguments, *tensors):
        with torch._C._AutoDispatchBelowAutograd():
            results = ops.lstm_layer(*arguments)
        _Layer.keep(ctx, (arguments, *tensors), results)
        return results

    @staticmethod
    def keep(ctx, inputs, results):
        arguments, *tensors = inputs
        output, _, _, gates, cell_states = results
        ctx.list_sizes, ctx.allow_tf32 = tuple(map(len, arguments[ops.LISTS])), arguments[-1]
        ctx.mark_non_differentiable(gates)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output, gates, cell_states, *arguments[ops.ROWS], *tensors)

    @staticmethod
    def backward(ctx, d_output, d_h_n, d_c_n, _, d_cell_states):
        output, gates, cell_states, *saved = ctx.saved_tensors
        rows, tensors = saved[:3], saved[3:]
        asked = ctx.needs_input_grad[1:]
        layer = _arguments(_by_kind(tensors, ctx.list_sizes), rows, ctx.allow_tf32)
        needs = list(map(_any, _by_kind(asked, ctx.list_sizes)))
        incoming = d_output, d_h_n, d_c_n, d_cell_states
        flat = _flat(_gradients((*incoming, *layer, output, gates, cell_states, needs)))
        return (None, *[gradient if ask else None for gradient, ask in zip(flat, asked)])


class _Cell(torch.autograd.Function):
    """`lstm_layer` of one step in one direction, as a cell has it: from [B, features] to h and c, [B, H].

    What `_Layer` does between views of its arguments and results, which cost a node each in the graph; and h and c are
    tensors of their own, which can be written to. `weights` are weight_ih, weight_hh, and both biases or none.
    """

    @staticmethod
    def forward(ctx, allow_tf32, input, h, c, *weights):
        with torch._C._AutoDispatchBelowAutograd():
            results = ops.lstm_layer(*_one_step(input, h, c, weights, allow_tf32))
        output, h_n, c_n, gates, cell_states = results
        ctx.allow_tf32 = allow_tf32
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output, gates, cell_states, input, h, c, *weights)
        return h_n.squeeze_(0), c_n.squeeze_(0)

    @staticmethod
    def backward(ctx, d_h, d_c):
        results, tensors = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
        asked = ctx.needs_input_grad[1:]
        is_plain = torch.is_grad_enabled() and not _transforms.are_active()
        run = _apply_cell_gradients if is_plain else _cell_gradients
        return (None, *run(results, asked, ctx.allow_tf32, d_h, d_c, *tensors))


class _CellGradients(torch.autograd.Function):
    """The gradients of `_Cell` with their derivative: to it what `_Gradients` is to `_Layer`."""

    @staticmethod
    def forward(ctx, results, asked, allow_tf32, *tensors):
        ctx.allow_tf32 = allow_tf32
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*results, *tensors)
        return _cell_gradients(results, asked, allow_tf32, *tensors)

    @staticmethod
    def backward(ctx, *cotangents):
        results, (d_h, d_c, *tensors) = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
        asked = ctx.needs_input_grad[3:]
        _, gates, cell_states = results
        if needs_graph((d_h, d_c)):
            layer = _one_step(*tensors[:3], tensors[3:], ctx.allow_tf32)
            by_kind = _one_step(*cotangents[:3], cotangents[3:], None)
            incoming = None, _as_step(d_h), _as_step(d_c), None
            asked_of_all = [False, *asked[:2], False, *asked[2:]]
            asked_of_all += [False] * (len(incoming) + len(layer) - len(asked_of_all))
            found = second_order(layer, incoming, results, by_kind, asked_of_all)
            found = [*found[1:3], *found[4:7], *chain.from_iterable(found[7:11])]
            return (None, None, None, *[None if d is None else d.squeeze(0) for d in found[:5]], *found[5:])
        needs = [*asked[2:7], any(asked[7:]), False]
        weights_dot = [*cotangents[3:], *[None] * (8 - len(cotangents))]
        found = of_one_step(
            tensors[:3], [*tensors[3:5], None], (gates[0], cell_states[0]), (d_h, None, d_c, None),
            cotangents[:3], weights_dot, needs,
        )  # fmt: skip
        biases = [found[7], found[7].clone()] if needs[5] else [None] * (len(tensors) - 5)  # equal, each its own
        flat = *found[:7], *biases
        return (None, None, None, *[one.to(gates.dtype) if ask else None for one, ask in zip(flat, asked)])


def _cell_gradients(results, asked, allow_tf32, d_h, d_c, input, h, c, *weights) -> tuple:
    """Of the gradients of `_Cell` those that are asked for; None for the others."""
    layer = _one_step(input, h, c, weights, allow_tf32)
    needs = [*asked, *[False] * (len(DIFFERENTIABLE) - len(asked))]
    found = _flat(_gradients((None, _as_step(d_h), _as_step(d_c), None, *layer, *results, needs)))
    flat = *(d.squeeze(0) for d in found[:3]), *found[3:]
    return tuple([gradient if ask else None for gradient, ask in zip(flat, asked)])


class _Gradients(torch.autograd.Function):
    """`lstm_layer_backward` with its derivative, for the incoming gradients and for the layer's arguments.

    Its arguments output, gates and cell_states are functions of the layer's arguments: what flows through them is
    counted there.
    """

    @staticmethod
    def forward(ctx, arguments, *tensors):
        with torch._C._AutoDispatchBelowAutograd():
            results = _flat(ops.lstm_layer_backward(*arguments))
        _Gradients.keep(ctx, (arguments, *tensors), results)
        return results

    @staticmethod
    def keep(ctx, inputs, _):
        arguments, *tensors = inputs
        *layer, output, gates, cell_states, ctx.needs = arguments[4:]
        ctx.list_sizes, ctx.allow_tf32 = tuple(map(len, layer[ops.LISTS])), layer[-1]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output, gates, cell_states, *layer[ops.ROWS], *tensors)

    @staticmethod
    def backward(ctx, *flat):
        output, gates, cell_states, *saved = ctx.saved_tensors
        rows, incoming, tensors = saved[:3], saved[3:7], saved[7:]
        asked = ctx.needs_input_grad[1:]
        layer = _arguments(_by_kind(tensors, ctx.list_sizes), rows, ctx.allow_tf32)
        cotangents = [u if needed else None for u, needed in zip(_by_kind(flat, ctx.list_sizes), ctx.needs)]
        asked_layer = _arguments(list(map(_any, _by_kind(asked[4:], ctx.list_sizes))), [False] * 3, False)
        asked = [*asked[:4], *asked_layer]
        found = second_order(layer, incoming, (output, gates, cell_states), cotangents, asked)
        of_layer = chain.from_iterable(as_list(found[4 + place]) for place in DIFFERENTIABLE)
        return (None, *found[:4], *of_layer)


class _TransformedLayer(torch.autograd.Function):
    """`_Layer` for transforms of torch.func."""

    generate_vmap_rule = True

    @staticmethod
    def forward(arguments, *tensors):
        return ops.lstm_layer(*arguments)

    setup_context = _Layer.keep
    backward = _Layer.backward


class _TransformedGradients(torch.autograd.Function):
    """`_Gradients` for transforms of torch.func."""

    generate_vmap_rule = True

    @staticmethod
    def forward(arguments, *tensors):
        return _flat(ops.lstm_layer_backward(*arguments))

    setup_context = _Gradients.keep
    backward = _Gradients.backward


# Function.apply without its detour for functorch: under vmap, the rule in _vmap.py comes first, and
# what arrives here are plain tensors.
_apply_layer, _apply_gradients, _apply_cell, _apply_cell_gradients = (
    super(torch.autograd.Function, function).apply for function in (_Layer, _Gradients, _Cell, _CellGradients)
)


def layer(*arguments):
    """`lstm_layer` of tensors of which some require gradients.

    What the operator does at the Autograd keys. To call it is the same as to call the operator, and
    faster: on the dispatcher's way there, all arguments and results are converted there and back.
    """
    return _apply_layer(arguments, *_tensors(*arguments))


def transformed_layer(*arguments):
    """`layer` under transforms of torch.func that take gradients."""
    return _TransformedLayer.apply(arguments, *_tensors(*arguments))


def cell(input, h, c, weights, allow_tf32):
    """(h, c) after one step, of tensors of which some require gradients; arguments as `_Cell` has them."""
    return _apply_cell(allow_tf32, input, h, c, *weights)


def cell_inference(input, h, c, weights, allow_tf32):
    """`cell` of tensors that record nothing."""
    _, h_n, c_n = ops.lstm_layer_inference(*_one_step(input, h, c, weights, allow_tf32))
    return h_n.squeeze_(0), c_n.squeeze_(0)


def _gradients(arguments):
    """What `lstm_layer_backward` returns, in the backward of an autograd function."""
    if _transforms.need_reference():
        return reference.lstm_layer_backward(*arguments)
    if _transforms.is_differentiating():
        return _differentiable(_TransformedGradients.apply, arguments)
    if torch._C._are_functorch_transforms_active():  # vmap, whose rule comes first
        return ops.lstm_layer_backward(*arguments)
    if torch.is_grad_enabled():  # double backward
        return _differentiable(_apply_gradients, arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return ops.lstm_layer_backward(*arguments)


def _differentiable(apply, arguments):
    incoming, layer = arguments[:4], arguments[4:-4]
    return _by_kind(apply(arguments, *incoming, *_tensors(*layer)), tuple(map(len, layer[ops.LISTS])))


def _one_step(input, h, c, weights, allow_tf32):
    """A layer's arguments for one step."""
    lists = [[weight] for weight in weights] + [[]] * (5 - len(weights))
    return _as_step(input), _as_step(h), _as_step(c), *lists, None, None, None, None, None, allow_tf32


def _as_step(rows):
    return None if rows is None else rows.unsqueeze(0)


def _tensors(
    input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr,
    batch_sizes, lengths, reset, reset_h, reset_c, allow_tf32,
):  # fmt: skip
    """Of a layer's arguments all that can have gradients, in a row."""
    return input, h_0, c_0, *weight_ih, *weight_hh, *bias_ih, *bias_hh, *weight_hr, reset_h, reset_c


def _flat(kinds):
    """What there is of each kind (see DIFFERENTIABLE), in the row of `_tensors`."""
    return *kinds[:3], *chain.from_iterable(kinds[3:8]), *kinds[8:]


def _by_kind(flat, list_sizes) -> list:
    """The opposite of `_flat`."""
    return [*flat[:3], *[flat[place] for place in _places(list_sizes)], *flat[-2:]]


@functools.cache
def _places(list_sizes) -> list[slice]:
    ends = list(accumulate(list_sizes, initial=3))
    return list(map(slice, ends, ends[1:]))


def _arguments(kinds, rows, allow_tf32) -> list:
    """A layer's arguments."""
    return [*kinds[:8], *rows, *kinds[8:], allow_tf32]


def _any(needs) -> bool:
    return any(needs) if isinstance(needs, (list, tuple)) else needs


def _layer_at_autograd_keys(*arguments):
    """`lstm_layer` at the Autograd keys.

    AOTInductor's executor passes None for an empty list of tensors: accepted here, on the way.
    """
    arguments = (*arguments[:3], *[tensors or [] for tensors in arguments[ops.LISTS]], *arguments[8:])
    if _requires_gradients(_tensors(*arguments)):
        return layer(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return ops.lstm_layer(*arguments)


def _gradients_at_autograd_keys(*arguments):
    """`lstm_layer_backward` at the Autograd keys."""
    if _requires_gradients((*arguments[:4], *_tensors(*arguments[4:-4]))):
        return tuple(_differentiable(_apply_gradients, arguments))
    with torch._C._AutoDispatchBelowAutograd():
        return ops.lstm_layer_backward(*arguments)


def _requires_gradients(tensors) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


_library_rules = torch.library.Library("fusedlstm", "IMPL")
_library_rules.impl("lstm_layer", _layer_at_autograd_keys, "Autograd")
_library_rules.impl("lstm_layer_backward", _gradients_at_autograd_keys, "Autograd")
