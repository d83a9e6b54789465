"""The derivatives of the operators, as autograd functions; and what calls them.

Written out instead of `torch.library.register_autograd`, which flattens lists of tensors by a general tree walk in
every call: that took longer than a whole small layer. Arguments here are the cell's name and the operator's, as one
tuple, then all that can have gradients, flat.

The functions of torch.func transforms (vjp, grad, jacrev) do the same in the form that those ask for. Calling them
takes longer, since PyTorch inspects their signatures each time.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from fusedlstm import _transforms, reference
from fusedlstm._arguments import (
    BackwardArguments,
    Incoming,
    LayerArguments,
    by_kind,
    flat,
    flat_tensors,
    layer_arguments,
    list_sizes,
    one_step,
)
from fusedlstm._namespace import NAMESPACE
from fusedlstm._private_torch import are_transforms_active, below_autograd, plain_apply, will_run
from fusedlstm._second_order import needs_graph, second_order, second_order_of_cell
from fusedlstm.cells import CELLS
from fusedlstm.ops import OPERATORS


class _Layer(torch.autograd.Function):
    """`<cell>_layer` with its derivative."""

    # No setup_context: with it, every call of apply inspects the signature, for 50 microseconds.
    @staticmethod
    def forward(ctx, name, layer, *tensors):
        with below_autograd():
            output, last, saved, carried = OPERATORS[name].layer(*layer)
        results = output, *last, saved, carried
        _Layer.keep(ctx, (name, layer, *tensors), results)
        return results

    @staticmethod
    def keep(ctx, inputs, results):
        ctx.name, layer, *tensors = inputs
        output, *_, saved, carried = results
        ctx.list_sizes, ctx.allow_tf32 = list_sizes(layer), layer.allow_tf32
        ctx.mark_non_differentiable(saved, *([] if CELLS[ctx.name].carried else [carried]))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output, saved, carried, layer.batch_sizes, layer.lengths, layer.reset, *tensors)

    @staticmethod
    def backward(ctx, d_output, *d_others):
        *d_last, _, d_carried = d_others
        saved = ctx.saved_tensors  # to be asked for once: checkpoints count
        *kept, batch_sizes, lengths, reset = saved[:6]
        tensors = saved[6:]
        asked = asked_of(ctx, tensors)
        layer = layer_arguments(by_kind(tensors, ctx.list_sizes), batch_sizes, lengths, reset, ctx.allow_tf32)
        incoming = Incoming(d_output, d_last, d_carried)
        needs = list(map(_any, by_kind(asked, ctx.list_sizes)))
        found = flat(gradients_of_layer(ctx.name, BackwardArguments(incoming, layer, *kept, needs)))
        return (None, None, *[gradient if ask else None for gradient, ask in zip(found, asked)])


class _Cell(torch.autograd.Function):
    """`<cell>_cell` with its derivative. `tensors` are its input, states and weights in a row."""

    @staticmethod
    def forward(ctx, name, allow_tf32, *tensors):
        with below_autograd():
            last, kept = OPERATORS[name].cell(*_of_step(name, tensors), allow_tf32)
        ctx.name, ctx.allow_tf32 = name, allow_tf32
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*kept, *tensors)
        return tuple(last)

    @staticmethod
    def backward(ctx, *d_states):
        saved = ctx.saved_tensors
        kept, tensors = saved[:3], saved[3:]
        step = _Step(ctx.name, kept, asked_of(ctx, tensors), ctx.allow_tf32)
        is_plain = torch.is_grad_enabled() and not _transforms.are_active()
        run = _apply_cell_gradients if is_plain else _cell_gradients
        return (None, None, *run(step, *d_states, *tensors))


class _Step(NamedTuple):
    """What the gradients of `_Cell` are computed from, beside tensors that can have gradients."""

    name: str
    kept: tuple  # output, saved, carried
    asked: list[bool]  # for each of `_Cell`'s tensors
    allow_tf32: bool


class _CellGradients(torch.autograd.Function):
    """The gradients of `_Cell` with their derivative: to it what `_Gradients` is to `_Layer`."""

    @staticmethod
    def forward(ctx, step, *tensors):
        ctx.step = step._replace(kept=None)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*step.kept, *tensors)
        return _cell_gradients(step, *tensors)

    @staticmethod
    def backward(ctx, *cotangents):
        name, _, _, allow_tf32 = ctx.step
        states = len(CELLS[name].states)
        saved = ctx.saved_tensors
        results, d_states, tensors = saved[:3], saved[3 : 3 + states], saved[3 + states :]
        asked = asked_of(ctx, saved[3:])
        if not needs_graph(d_states):
            return (None, *second_order_of_cell(CELLS[name], d_states, tensors, results, cotangents, asked))
        layer = one_step(*_of_step(name, tensors), allow_tf32)
        cotangents = one_step(*_of_step(name, cotangents), None)
        incoming = Incoming(None, list(map(_as_steps, d_states)), None)
        sizes = list_sizes(layer)
        asked_incoming = Incoming(False, any(asked[:states]), False)
        asked_layer = by_kind(asked[states:], sizes)
        found_incoming, found = second_order(
            CELLS[name], layer, incoming, results, by_kind(flat_tensors(cotangents), sizes), asked_incoming,
            list(map(_any, asked_layer)),
        )  # fmt: skip
        d_rows = [*found_incoming.last, found.input, *found.initial]
        found = [*[None if d is None else d.squeeze(0) for d in d_rows], *flat(found)[1 + states :]]
        return (None, *[one if ask else None for one, ask in zip(found, asked)])


def _cell_gradients(step, *tensors) -> tuple:
    """Of the gradients of `_Cell` those that are asked for; None for the others."""
    states = len(CELLS[step.name].states)
    d_states, parts = tensors[:states], _of_step(step.name, tensors[states:])
    if _transforms.are_active():
        layer = one_step(*parts, step.allow_tf32)
        needs = list(map(_any, by_kind(step.asked, list_sizes(layer))))
        incoming = Incoming(None, list(map(_as_steps, d_states)), None)
        found = flat(gradients_of_layer(step.name, BackwardArguments(incoming, layer, *step.kept, needs)))
        found = *(d.squeeze(0) for d in found[: 1 + states]), *found[1 + states :]
    else:
        with below_autograd():
            found = OPERATORS[step.name].cell_backward(d_states, *parts, step.allow_tf32, step.kept, step.asked)
    return tuple([gradient if ask else None for gradient, ask in zip(found, step.asked)])


def _of_step(name, tensors) -> tuple:
    """What there is for a step's input, for its states, and for its weights, of all in a row."""
    end = 1 + len(CELLS[name].states)
    return tensors[0], tensors[1:end], tensors[end:]


class _Gradients(torch.autograd.Function):
    """`<cell>_layer_backward` with its derivative, for the incoming gradients and for the layer's arguments.

    Its arguments output, saved and carried are functions of the layer's arguments: what flows through them is counted
    there.
    """

    @staticmethod
    def forward(ctx, name, arguments, *tensors):
        with below_autograd():
            results = flat(OPERATORS[name].backward(*arguments.in_a_row()))
        _Gradients.keep(ctx, (name, arguments, *tensors), results)
        return results

    @staticmethod
    def keep(ctx, inputs, _):
        ctx.name, arguments, *tensors = inputs
        incoming, layer, output, saved, carried, ctx.needs = arguments
        ctx.states, ctx.list_sizes, ctx.allow_tf32 = len(incoming.last), list_sizes(layer), layer.allow_tf32
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output, saved, carried, layer.batch_sizes, layer.lengths, layer.reset, *tensors)

    @staticmethod
    def backward(ctx, *flat_cotangents):
        saved = ctx.saved_tensors
        *results, batch_sizes, lengths, reset = saved[:6]
        incoming, tensors = _incoming_and_others(saved[6:], ctx.states)
        asked_incoming, asked_tensors = _incoming_and_others(asked_of(ctx, saved[6:]), ctx.states)
        layer = layer_arguments(by_kind(tensors, ctx.list_sizes), batch_sizes, lengths, reset, ctx.allow_tf32)
        cotangents = by_kind(flat_cotangents, ctx.list_sizes)
        cotangents = cotangents._make(u if need else _nothing(u) for u, need in zip(cotangents, ctx.needs))
        asked = list(map(_any, by_kind(asked_tensors, ctx.list_sizes)))
        found_incoming, found = second_order(
            CELLS[ctx.name], layer, incoming, results, cotangents, Incoming(*map(_any, asked_incoming)), asked
        )
        d_output, d_last, d_carried = found_incoming
        found = [d_output, *d_last, d_carried, *flat(found)]
        return (None, None, *[one if ask else None for one, ask in zip(found, ctx.needs_input_grad[2:])])


class _TransformedLayer(torch.autograd.Function):
    """`_Layer` for transforms of torch.func."""

    generate_vmap_rule = True

    @staticmethod
    def forward(name, layer, *tensors):
        output, last, saved, carried = OPERATORS[name].layer(*layer)
        return output, *last, saved, carried

    setup_context = _Layer.keep
    backward = _Layer.backward


class _TransformedGradients(torch.autograd.Function):
    """`_Gradients` for transforms of torch.func."""

    generate_vmap_rule = True

    @staticmethod
    def forward(name, arguments, *tensors):
        return flat(OPERATORS[name].backward(*arguments.in_a_row()))

    setup_context = _Gradients.keep
    backward = _Gradients.backward


# Under vmap, the rule in _vmap.py comes first, and what arrives here are plain tensors.
_apply_layer, _apply_gradients, _apply_cell, _apply_cell_gradients = map(
    plain_apply, (_Layer, _Gradients, _Cell, _CellGradients)
)


def _layer(apply, name, *arguments):
    layer = LayerArguments(*arguments)
    output, *last, saved, carried = apply(name, layer, *flat_tensors(layer))
    return output, last, saved, carried


# `<cell>_layer` of tensors of which some require gradients: what the operator does at the Autograd keys. To call it is
# the same as to call the operator, and faster: on the dispatcher's way there, all arguments and results are converted
# there and back.
LAYERS = {name: functools.partial(_layer, _apply_layer, name) for name in CELLS}
# The same under transforms of torch.func that take gradients.
TRANSFORMED_LAYERS = {name: functools.partial(_layer, _TransformedLayer.apply, name) for name in CELLS}


def run_step(name, input, states, weights, allow_tf32):
    """States after one step of a cell, [B, H] each, outside of transforms; derivatives are recorded where any is asked.

    Arguments as those of `<cell>_cell`, states and weights as tuples.
    """
    if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
        tensors = (input, *states, *weights)
        if weights[0].requires_grad or any(tensor.requires_grad for tensor in tensors):
            return _apply_cell(name, allow_tf32, *tensors)
    return OPERATORS[name].cell_inference(input, states, weights, allow_tf32)


def gradients_of_layer(name, arguments: BackwardArguments):
    """What `<cell>_layer_backward` returns, in the backward of an autograd function."""
    if _transforms.need_reference():
        return reference.layer_backward(CELLS[name], *arguments.in_a_row())
    if _transforms.is_differentiating():
        return _differentiable(_TransformedGradients.apply, name, arguments)
    if are_transforms_active():  # vmap, whose rule comes first
        return OPERATORS[name].backward(*arguments.in_a_row())
    if torch.is_grad_enabled():  # double backward
        return _differentiable(_apply_gradients, name, arguments)
    with below_autograd():
        return OPERATORS[name].backward(*arguments.in_a_row())


def _differentiable(apply, name, arguments: BackwardArguments):
    d_output, d_last, d_carried = arguments.incoming
    layer = arguments.layer
    found = apply(name, arguments, d_output, *d_last, d_carried, *flat_tensors(layer))
    return tuple(by_kind(found, list_sizes(layer)))


def _incoming_and_others(in_a_row, states) -> tuple[Incoming, tuple]:
    """What is given for each incoming gradient, and what follows."""
    d_output, *d_last, d_carried = in_a_row[: states + 2]
    return Incoming(d_output, d_last, d_carried), in_a_row[states + 2 :]


def _as_steps(rows):
    return None if rows is None else rows.unsqueeze(0)


def asked_of(ctx, tensors) -> list[bool]:
    """Of the last arguments of an autograd function, tensors or None, those whose gradients this pass asks for.

    Without a look at the pass, torch.autograd.grad for the input alone would compute the gradients of all weights.
    """
    asked = list(ctx.needs_input_grad[-len(tensors) :])
    if torch.compiler.is_compiling() or _transforms.are_active():
        return asked
    nodes = ctx.next_functions  # of the arguments that are tensors
    if len(nodes) < len(tensors):
        nodes = iter(nodes)
        nodes = [(None, 0) if tensor is None else next(nodes) for tensor in tensors]
    return [ask and will_run(node) for ask, (node, _) in zip(asked, nodes)]


def _any(needs) -> bool:
    return any(needs) if isinstance(needs, (list, tuple)) else needs


def _nothing(cotangents):
    return [None] * len(cotangents) if isinstance(cotangents, (list, tuple)) else None


def _layer_at_autograd_keys(name, *arguments):
    """`<cell>_layer` at the Autograd keys.

    AOTInductor's executor passes None for an empty list of tensors: accepted here, on the way.
    """
    layer = LayerArguments(*arguments)
    layer = LayerArguments(layer.input, *[tensors or [] for tensors in layer[1:7]], *layer[7:])
    layer = layer._replace(reset_state=layer.reset_state or [])
    if _requires_gradients(flat_tensors(layer)):
        return LAYERS[name](*layer)
    with below_autograd():
        return OPERATORS[name].layer(*layer)


def _gradients_at_autograd_keys(name, *arguments):
    """`<cell>_layer_backward` at the Autograd keys."""
    given = BackwardArguments.of(arguments)
    d_output, d_last, d_carried = given.incoming
    if _requires_gradients((d_output, *d_last, d_carried, *flat_tensors(given.layer))):
        return _differentiable(_apply_gradients, name, given)
    with below_autograd():
        return OPERATORS[name].backward(*arguments)


def _requires_gradients(tensors) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _quantized_layer(operator, *arguments):
    """`<cell>_layer_quantized` of tensors that require no gradients: the shorter way to the operator, as of LAYERS."""
    with below_autograd():
        return operator(*arguments)


QUANTIZED_LAYERS = {name: functools.partial(_quantized_layer, of.quantized) for name, of in OPERATORS.items()}


def _quantized_layer_at_autograd_keys(name, input, initial, weights, batch_sizes, lengths, reset, reset_state):
    """`<cell>_layer_quantized` at the Autograd keys, where graphs call it.

    It has no derivative. AOTInductor's executor passes None for an empty list of tensors; and lists are made anew here:
    out of one that is a constant of a frozen TorchScript graph, PyTorch takes the tensors when it calls the kernel.
    """
    initial, reset_state = initial or [], reset_state or []
    if _requires_gradients((input, *initial, *weights, *reset_state)):
        refuse_gradients_of_quantized()
    return QUANTIZED_LAYERS[name](input, initial, weights, batch_sizes, lengths, reset, reset_state)


def refuse_gradients_of_quantized():
    raise RuntimeError(
        "Quantized layers are for inference: expected arguments without gradients, got one that requires them; call "
        "the model under torch.no_grad()"
    )


_library_rules = torch.library.Library(NAMESPACE, "IMPL")
for _name, _operators in OPERATORS.items():
    _library_rules.impl(_operators.layer, functools.partial(_layer_at_autograd_keys, _name), "Autograd")
    _library_rules.impl(_operators.backward, functools.partial(_gradients_at_autograd_keys, _name), "Autograd")
    _library_rules.impl(_operators.quantized, functools.partial(_quantized_layer_at_autograd_keys, _name), "Autograd")
