"""Double backward: the gradients of `<cell>_layer_backward` for its arguments.

They are those of the sum of <cotangent, gradient> over all gradients that it returns. The same sum, seen from the
layer's results, is that of <incoming gradient, tangent>: how the results change when the layer's arguments move along
the cotangents. With s for the state (h, c) after each step, F for the step, and arguments (x, s before, weights):

* tangents of the states, in the order of the steps: s' = DF (x', s' before, weights'). They are the gradients for the
  incoming gradients.
* adjoints of the tangents, in the opposite order: the gradients of first order for the states.
* adjoints of the states: each step adds the gradient of <adjoint, DF (x', s' before, weights')> for x, s before and
  weights; what goes to s before flows on as any gradient of a state does, by `<cell>_layer_backward`.

The tangents and the adjoints of the tangents need a loop in Python, of one product and one operator call a step, and no
graph. The gradients that the steps add do not depend on one another: the steps are rows of one batch, see
_second_order_step.py. One step alone, as of a cell, is no more than that; the loops are in _second_order_chunks.py.
"""

from __future__ import annotations

import torch

from fusedlstm import _second_order_step, _transforms, reference
from fusedlstm._arguments import (
    BackwardArguments,
    Differentiable,
    Incoming,
    LayerArguments,
    differentiable,
    layer_arguments,
)
from fusedlstm._second_order_chunks import by_chunks
from fusedlstm.cells import Cell
from fusedlstm.reference import arranged, as_list, gradients, listed, nothing, replaced


def second_order(
    cell: Cell, layer: LayerArguments, incoming: Incoming, results, cotangents, asked_incoming: Incoming, asked
) -> tuple[Incoming, Differentiable]:
    """Gradients for `incoming` and for `layer`, of the sum of <cotangent, gradient>.

    Args:
        cell, layer: what ran.
        incoming: gradients of its results; None where there is none.
        results: output, saved and carried that it returned.
        cotangents: Differentiable, for each result of `<cell>_layer_backward`; None for zeros.
        asked_incoming, asked: whether to return gradients for each of `incoming`, and for each kind of Differentiable.

    Returns:
        None, in lists too, where nothing was asked or nothing flows.
    """
    is_ensemble = layer.initial[0].dim() == 4
    steps = layer.input.size(int(is_ensemble)) if layer.batch_sizes is None else layer.batch_sizes.size(0)
    # lengths together with reset: only by calling the operator.
    has_both = layer.lengths is not None and layer.reset is not None
    given = [*listed_incoming(incoming), *(u for kind in cotangents for u in listed(kind))]
    if needs_graph(given) or steps == 0 or has_both:
        return _by_reference(cell, layer, incoming, cotangents, asked_incoming, asked)
    if not listed_incoming(incoming) or not any(map(listed, cotangents)):
        return Incoming(*map(nothing, incoming)), Differentiable(*map(nothing, differentiable(layer)))
    if is_ensemble:
        return _by_members(cell, layer, incoming, results, cotangents, asked_incoming, asked)
    with torch.autocast(layer.input.device.type, enabled=False):
        if steps == 1 and layer.lengths is None and layer.reset is None:
            return _by_one_step(cell, layer, incoming, results, cotangents, asked_incoming, asked)
        return by_chunks(cell, layer, incoming, results, cotangents, asked_incoming, asked)


def needs_graph(given) -> bool:
    """Whether what is computed of these gradients, None among them, must be a graph, and made of operators that all
    transforms have a rule for.

    Gradients of third order need one, by transforms too; batched ones cannot be written into memory that is not.
    """
    return torch.is_grad_enabled() or _transforms.are_active(given)


def listed_incoming(incoming: Incoming) -> list:
    """The gradients that there are."""
    return [d for kind in incoming for d in listed(kind)]


def _by_reference(cell, layer, incoming, cotangents, asked_incoming, asked):
    """`second_order` by differentiating the reference twice."""
    arguments = *incoming, *layer
    asked_all = *asked_incoming, *layer_arguments(asked, False, False, False, False)
    needs = [len(listed(u)) > 0 for u in cotangents]
    moved = [[u is not None for u in as_list(kind)] for kind in cotangents]

    def first_order(*wanted):
        moving = replaced(arguments, asked_all, wanted)
        call = BackwardArguments(Incoming(*moving[:3]), LayerArguments(*moving[3:]), None, None, None, needs)
        found = reference.layer_backward(cell, *call.in_a_row())
        return [d for kind, has in zip(found, moved) for d, one in zip(as_list(kind), has) if one]

    wanted = [tensor for argument, ask in zip(arguments, asked_all) if ask for tensor in listed(argument)]
    found = iter(gradients(first_order, wanted, [u for kind in cotangents for u in listed(kind)]))
    found = [arranged(argument, ask, found, lambda: None) for argument, ask in zip(arguments, asked_all)]
    return Incoming(*found[:3]), differentiable(LayerArguments(*found[3:]))


def _by_members(cell, layer, incoming, results, cotangents, asked_incoming, asked):
    """`second_order` of an ensemble, one member after another."""
    found = []
    for m in range(layer.initial[0].size(0)):
        of_m = reference.of_member(incoming, m), reference.of_member(results, m), reference.of_member(cotangents, m)
        given = Incoming(*of_m[0]), of_m[1], Differentiable(*of_m[2])
        found.append(second_order(cell, reference.member(layer, m), *given, asked_incoming, asked))

    def stacked(members):
        if isinstance(members[0], list):
            return list(map(stacked, zip(*members)))
        return None if members[0] is None else torch.stack(members)

    all_incoming, all_found = zip(*found)
    return Incoming(*map(stacked, zip(*all_incoming))), Differentiable(*map(stacked, zip(*all_found)))


def of_one_step(cell: Cell, rows, weights, saved, after, incoming, rows_dot, weights_dot, needs, is_at_sums=False):
    """What _second_order_step.py finds, as it is asked for there, of tensors in a layer's dtype."""
    dtype = torch.promote_types(saved.dtype, torch.float32)
    given = rows, weights, (saved,), after, incoming, rows_dot, weights_dot
    if saved.dtype is not dtype:
        given = [[None if one is None else one.to(dtype) for one in kind] for kind in given]
    rows, weights, (saved,), *others = given
    return _second_order_step.second_order(cell, rows, weights, saved, *others, needs, is_at_sums)


def states_after(cell: Cell, h, carried) -> list:
    """The states after a step, of what a layer returned of it; `carried` are all but h, side by side."""
    return [h, *carried.chunk(cell.carried, -1)] if cell.carried else [h]


def _by_one_step(cell, layer, incoming, results, cotangents, asked_incoming, asked):
    """`second_order` of a layer that has one step, the first for both directions."""
    x, x_dot, d_output, output = (
        None if one is None else one.reshape(-1, one.size(-1))
        for one in (layer.input, cotangents.input, incoming.output, results[0])
    )
    asks = Differentiable(*asked)
    states, R = len(cell.states), layer.initial[0].size(-1)
    lists = layer.weight_ih, layer.weight_hh, layer.weight_hr
    needs = [asks.input, *[asks.initial] * states, *asks[2:7]]
    found = []
    for d in range(layer.initial[0].size(0)):

        def own(kind, d=d):
            """This direction's part, None of what is not there."""
            return None if kind is None or len(kind) == 0 else kind[d]

        def columns(rows, d=d):
            return None if rows is None else rows[:, d * R : (d + 1) * R]

        from_steps = [columns(d_output), *[None] * cell.carried]
        if incoming.carried is not None and cell.carried:
            from_steps[1:] = own(incoming.carried).chunk(cell.carried, -1)
        arrive = [_sum(*given) for given in zip(from_steps, map(own, incoming.last))]
        rows, rows_dot = (x, *map(own, layer.initial)), (x_dot, *map(own, cotangents.initial))
        weights, weights_dot = [*map(own, lists)], [*map(own, cotangents[2:7])]
        after = states_after(cell, columns(output), results[2][d])
        found.append(of_one_step(cell, rows, weights, results[1][d], after, arrive, rows_dot, weights_dot, needs))

    found = [*zip(*found)]
    after_dot, to_x, to_initial, of_lists = found[:states], found[states], found[states + 1 :][:states], found[-5:]
    dtype = layer.input.dtype

    def narrow(ask, make):
        return make().to(dtype) if ask else None

    found_incoming = Incoming(
        narrow(asked_incoming.output, lambda: torch.cat(after_dot[0], -1).view_as(incoming.output)),
        [narrow(asked_incoming.last, lambda dots=dots: torch.stack(dots)) for dots in after_dot],
        torch.cat([*map(torch.stack, after_dot[1:])], -1) if asked_incoming.carried else None,
    )
    return found_incoming, Differentiable(
        narrow(asks.input, lambda: _sum(*to_x).view_as(layer.input)),
        [narrow(asks.initial, lambda to=to: torch.stack(to)) for to in to_initial],
        *(
            [one.to(dtype) for one in kind] if ask and argument else nothing(argument)
            for kind, ask, argument in zip(of_lists, asks[2:7], layer[2:7])
        ),
        nothing(layer.reset_state),
    )


def _sum(*given):
    """The sum of what is given; None where all are."""
    given = [one for one in given if one is not None]
    return sum(given[1:], given[0]) if given else None
