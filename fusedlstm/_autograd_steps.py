"""The derivatives of one step, as autograd functions; and what calls them. See _autograd.py, which has those of layers.

In a double backward, gradients arrive at a step from two sides: those that its own first gradients give to what they
were computed from, and those that these give to its results. PyTorch's cells, many operators, add them up at the sums
that enter the gates, and multiply once. A step that is one operator would multiply for each. So it has one result more,
which nobody sees: `saved` of the operator. The gradients of its gradients leave there what they have for the sums, and
the step adds it to its own before it multiplies.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from fusedlstm import _transforms
from fusedlstm._arguments import (
    BackwardArguments,
    Incoming,
    by_kind,
    flat,
    flat_tensors,
    list_sizes,
    one_step,
)
from fusedlstm._autograd import any_of, asked_in_pass, asked_of, gradients_of_layer
from fusedlstm._choice import is_tf32_on
from fusedlstm._out_of_memory import raises_out_of_memory
from fusedlstm._private_torch import below_autograd, is_dynamo_compiling, plain_apply
from fusedlstm._second_order import needs_graph, second_order
from fusedlstm._second_order_cell import gradients_of_sums, second_order_of_cell
from fusedlstm._steps_together import Step, gradients_of_weights, hand_on, handed_to, most_steps
from fusedlstm.cells import CELLS, Cell
from fusedlstm.ops import OPERATORS

# Dtypes in which sums are not rounded.
UNROUNDED = torch.float32, torch.float64


def run_step(cell: Cell, input, states, weights):
    """States after one step, shaped as those before it, outside of transforms; derivatives are recorded where any is
    asked. Of tensors that fit: of others it raises any exception.

    Arguments as those of `<cell>_cell`, states and weights as tuples; no states for zeros; input and states may be
    without B.
    """
    is_batched, records = input.dim() == 2, False
    if not states:
        H = weights[1].size(1)
        states = (input.new_zeros((input.size(0), H) if is_batched else (H,)),) * len(cell.states)
    if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
        records = weights[0].requires_grad or any(tensor.requires_grad for tensor in (input, *states, *weights))
    if not is_batched:
        input, states = input.unsqueeze(0), tuple([state.unsqueeze(0) for state in states])
    allow_tf32 = input.is_cuda and input.dtype is torch.float32 and is_tf32_on(True)
    if records:
        last = _apply_cell(cell.name, allow_tf32, input, *states, *weights)[: len(states)]
    else:
        last = OPERATORS[cell.name].cell_inference(input, states, weights, allow_tf32)
    return last if is_batched else [state.squeeze_(0) for state in last]


class _Cell(torch.autograd.Function):
    """`<cell>_cell` with its derivative. `tensors` are its input, states and weights in a row."""

    @staticmethod
    def forward(ctx, name, allow_tf32, *tensors):
        with below_autograd():
            last, kept = OPERATORS[name].cell(*_of_step(name, tensors), allow_tf32)
        ctx.name, ctx.allow_tf32 = name, allow_tf32
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*kept, *tensors)
        return (*last, kept[1]) if _takes_gradients_of_sums(CELLS[name], kept) else tuple(last)

    @staticmethod
    @raises_out_of_memory
    def backward(ctx, *d_results):
        cell, saved = CELLS[ctx.name], ctx.saved_tensors
        states = len(cell.states)
        d_states, kept, tensors = d_results[:states], saved[:3], saved[3:]
        is_transformed = _transforms.are_active(d_results)
        asked = ctx.needs_input_grad[2:] if is_transformed else asked_in_pass(ctx, tensors)
        handed = [] if is_dynamo_compiling() else handed_to(ctx)
        if len(d_results) > states and d_results[states] is not None:
            found = gradients_of_sums(cell, d_states, d_results[states], kept, tensors, asked)
        elif all(d is None for d in d_states):  # as what comes after may say
            found = [None] * len(tensors)
        elif is_transformed:
            found = _gradients_by_layer(ctx.name, ctx.allow_tf32, d_states, tensors, kept, asked)
        elif torch.is_grad_enabled():
            to_sums = kept[1] if len(d_results) > states else None
            step = _Step(ctx.name, kept, asked, ctx.allow_tf32)
            found = _apply_cell_gradients(step, to_sums, *d_states, *tensors)
        else:
            return (None, None, *_cell_gradients_together(ctx, d_states, tensors, kept, asked, handed))
        if handed:  # by steps that came to this one by another way
            found = _added(found, gradients_of_weights(ctx.name, handed, tensors[1 + states :], asked[1 + states :]))
        return (None, None, *found)


class _Step(NamedTuple):
    """What the gradients of `_Cell` are computed from, beside tensors that can have gradients."""

    name: str
    kept: tuple  # output, saved, carried
    asked: list[bool]  # for each of `_Cell`'s tensors
    allow_tf32: bool


class _CellGradients(torch.autograd.Function):
    """The gradients of `_Cell` with their derivative: to it what `_Gradients` is to `_Layer`.

    to_sums: the result of `_Cell` that takes the gradients for the sums, or None.
    """

    @staticmethod
    def forward(ctx, step, to_sums, *tensors):
        ctx.name, ctx.allow_tf32, ctx.has_sums = step.name, step.allow_tf32, to_sums is not None
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*step.kept, *tensors)
        states = len(CELLS[step.name].states)
        d_states, of_cell = tensors[:states], tensors[states:]
        return tuple(_cell_gradients(step.name, step.allow_tf32, d_states, of_cell, step.kept, step.asked))

    @staticmethod
    @raises_out_of_memory
    def backward(ctx, *cotangents):
        cell = CELLS[ctx.name]
        states = len(cell.states)
        saved = ctx.saved_tensors
        results, d_states, tensors = saved[:3], saved[3 : 3 + states], saved[3 + states :]
        if all(u is None for u in cotangents):
            return (None,) * (2 + states + len(tensors))
        given_at = 1 + states if ctx.has_sums else None
        asks_sums, *asked = asked_of(ctx, (saved[0] if ctx.has_sums else None, *saved[3:]), given_at)
        if not needs_graph((*d_states, *cotangents)):
            found = second_order_of_cell(cell, d_states, tensors, results, cotangents, asked, asks_sums)
            return (None, *found)
        layer = one_step(*_of_step(cell.name, tensors), ctx.allow_tf32)
        cotangents = one_step(*_of_step(cell.name, cotangents), None)
        incoming = Incoming(None, list(map(_as_steps, d_states)), None)
        sizes = list_sizes(layer)
        asked_incoming = Incoming(False, any(asked[:states]), False)
        asked_layer = by_kind(asked[states:], sizes)
        found_incoming, found = second_order(
            cell, layer, incoming, results, by_kind(flat_tensors(cotangents), sizes), asked_incoming,
            list(map(any_of, asked_layer)),
        )  # fmt: skip
        d_rows = [*found_incoming.last, found.input, *found.initial]
        found = [*[None if d is None else d.squeeze(0) for d in d_rows], *flat(found)[1 + states :]]
        return (None, None, *[one if ask else None for one, ask in zip(found, asked)])


_apply_cell, _apply_cell_gradients = plain_apply(_Cell), plain_apply(_CellGradients)


def _takes_gradients_of_sums(cell: Cell, kept) -> bool:
    """Whether `saved` is of the sums' size, and so can stand for them. In 16 bits their gradients are rounded there, as
    those of PyTorch's cells are: only where that spares products in 16 bits, which Python does not make."""
    return cell.saved == cell.sums and (kept[1].is_cpu or kept[1].dtype in UNROUNDED)


def _cell_gradients(name, allow_tf32, d_states, tensors, kept, asked) -> list:
    """Of the gradients of `_Cell` those that are asked for; None for the others."""
    with below_autograd():
        found = OPERATORS[name].cell_backward(d_states, *_of_step(name, tensors), allow_tf32, kept, asked)
    return found if all(asked) else [gradient if ask else None for gradient, ask in zip(found, asked)]


def _cell_gradients_together(ctx, d_states, tensors, kept, asked, handed) -> list:
    """`_cell_gradients` of a node; those of the weights with other steps', see _steps_together.py."""
    cell, first = CELLS[ctx.name], 1 + len(d_states)
    rows, weights = tensors[:first], tensors[first:]
    most = most_steps(cell, rows) if True in asked[first:] else 0
    if most or handed:
        own = Step(d_states, rows, kept)
        is_handed_on = len(handed) + 1 < most and hand_on(ctx, handed, own)
        if is_handed_on or handed:
            of_rows = [*asked[:first], *[False] * len(weights)]
            found = _cell_gradients(ctx.name, ctx.allow_tf32, d_states, tensors, kept, of_rows)
            if not is_handed_on:
                found[first:] = gradients_of_weights(ctx.name, [*handed, own], weights, asked[first:])
            return found
    return _cell_gradients(ctx.name, ctx.allow_tf32, d_states, tensors, kept, asked)


def _added(found, of_weights) -> list:
    """Gradients of `_Cell`'s tensors, with more of the weights'."""
    rows = len(found) - len(of_weights)
    sums = [one if two is None else two if one is None else one + two for one, two in zip(found[rows:], of_weights)]
    return [*found[:rows], *sums]


def _gradients_by_layer(name, allow_tf32, d_states, tensors, kept, asked) -> list:
    """The same under transforms, which have rules for layers."""
    states = len(d_states)
    layer = one_step(*_of_step(name, tensors), allow_tf32)
    needs = list(map(any_of, by_kind(asked, list_sizes(layer))))
    incoming = Incoming(None, list(map(_as_steps, d_states)), None)
    found = flat(gradients_of_layer(name, BackwardArguments(incoming, layer, *kept, needs)))
    found = *(d.squeeze(0) for d in found[: 1 + states]), *found[1 + states :]
    return [gradient if ask else None for gradient, ask in zip(found, asked)]


def _of_step(name, tensors) -> tuple:
    """What there is for a step's input, for its states, and for its weights, of all in a row."""
    end = 1 + len(CELLS[name].states)
    return tensors[0], tensors[1:end], tensors[end:]


def _as_steps(rows):
    return None if rows is None else rows.unsqueeze(0)
