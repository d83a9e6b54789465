"""Double backward: the gradients of `lstm_layer_backward` for its arguments.

They are those of the sum of <cotangent, gradient> over all gradients that it returns. The same sum, seen from the
layer's results, is that of <incoming gradient, tangent>: how the results change when the layer's arguments move along
the cotangents. With s for the state (h, c) after each step, F for the step, and arguments (x, s before, weights):

* tangents of the states, in the order of the steps: s' = DF (x', s' before, weights'). They are the gradients for the
  incoming gradients.
* adjoints of the tangents, in the opposite order: what `lstm_layer_backward` finds for the states.
* adjoints of the states: each step adds the gradient of <adjoint, DF (x', s' before, weights')> for x, s before and
  weights; what goes to s before flows on as any gradient of a state does, by `lstm_layer_backward`.

So only the tangents need a loop in Python, of a few small operations a step, and no graph. The gradients that the
steps add do not depend on one another: the steps are rows of one batch, see _second_order_step.py. One step alone, as
of a cell, is no more than that; the loop is in _second_order_chunks.py.
"""

from __future__ import annotations

import torch

from fusedlstm import _second_order_step, _transforms, reference
from fusedlstm._second_order_chunks import by_chunks
from fusedlstm.reference import arranged, as_list, gradients, listed, nothing, replaced


def second_order(layer, incoming, results, cotangents, asked) -> list:
    """Gradients for `incoming` and for `layer`, of the sum of <cotangent, gradient>.

    Args:
        layer: the arguments of `lstm_layer`.
        incoming: d_output, d_h_n, d_c_n, d_cell_states; None where there is none.
        results: output, gates and cell_states that `lstm_layer` returned.
        cotangents: for each result of `lstm_layer_backward`; None for zeros.
        asked: whether to return a gradient for each of `incoming` and of `layer`.

    Returns:
        As many as `asked`, lists where the layer's arguments are lists; None where nothing was asked or nothing flows.
    """
    batch_sizes, lengths, reset = layer[8:11]
    is_ensemble = layer[1].dim() == 4
    steps = layer[0].size(int(is_ensemble)) if batch_sizes is None else batch_sizes.size(0)
    # lengths together with reset: only by calling the operator.
    if needs_graph(incoming) or steps == 0 or not (lengths is None or reset is None):
        return _by_reference(layer, incoming, cotangents, asked)
    if all(d is None for d in incoming) or not any(map(listed, cotangents)):
        return [nothing(argument) for argument in (*incoming, *layer)]
    if is_ensemble:
        return _by_members(layer, incoming, results, cotangents, asked)
    with torch.autocast(layer[0].device.type, enabled=False):
        if steps == 1 and lengths is None and reset is None:
            return _by_one_step(layer, incoming, results, cotangents, asked)
        return by_chunks(layer, incoming, results, cotangents, asked)


def needs_graph(incoming) -> bool:
    """Whether what is computed must be a graph, and made of operators that all transforms have a rule for.

    Gradients of third order need one, by transforms too; batched ones cannot be written into memory that is not.
    """
    return torch.is_grad_enabled() or _transforms.are_active() or any(map(_transforms.is_batched, incoming))


def _by_reference(layer, incoming, cotangents, asked) -> list:
    """`second_order` by differentiating the reference twice."""
    arguments = (*incoming, *layer)
    needs = [len(listed(u)) > 0 for u in cotangents]
    moved = [[u is not None for u in as_list(kind)] for kind in cotangents]

    def first_order(*wanted):
        found = reference.lstm_layer_backward(*replaced(arguments, asked, wanted), None, None, None, needs)
        return [d for kind, has in zip(found, moved) for d, one in zip(as_list(kind), has) if one]

    wanted = [tensor for argument, ask in zip(arguments, asked) if ask for tensor in listed(argument)]
    found = iter(gradients(first_order, wanted, [u for kind in cotangents for u in listed(kind)]))
    return [arranged(argument, ask, found, lambda: None) for argument, ask in zip(arguments, asked)]


def _by_members(layer, incoming, results, cotangents, asked) -> list:
    """`second_order` of an ensemble, one member after another."""
    found = []
    for m in range(layer[1].size(0)):
        others = (reference.of_member(tensors, m) for tensors in (incoming, results, cotangents))
        found.append(second_order(reference.member(layer, m), *others, asked))

    def stacked(members):
        if isinstance(members[0], list):
            return list(map(stacked, zip(*members)))
        return None if members[0] is None else torch.stack(members)

    return list(map(stacked, zip(*found)))


def of_one_step(rows, weights, results, incoming, rows_dot, weights_dot, needs) -> tuple:
    """What _second_order_step.py finds for one step of one direction.

    Args:
        rows, weights, rows_dot, weights_dot, needs: as there, in the layer's dtype.
        results: gates and cell states.
        incoming: gradients that arrive at h and at c, each the sum of two; None for zeros.

    Returns:
        As there, in the dtype of the cell states.
    """
    gates, c_next = results
    if gates.dtype is not c_next.dtype:
        rows, weights, rows_dot, weights_dot, incoming = (
            [None if one is None else one.to(c_next.dtype) for one in kind]
            for kind in (rows, weights, rows_dot, weights_dot, incoming)
        )
        gates = gates.to(c_next.dtype)
    d_h, d_c = _sum(*incoming[:2]), _sum(*incoming[2:])
    if d_h is None:
        d_h = torch.zeros_like(rows[1])
    return _second_order_step.second_order(rows, weights, gates, c_next, (d_h, d_c), rows_dot, weights_dot, needs)


def _by_one_step(layer, incoming, results, cotangents, asked) -> list:
    """`second_order` of a layer that has one step, the first for both directions."""
    x, x_dot, d_output = (
        None if one is None else one.reshape(-1, one.size(-1)) for one in (layer[0], cotangents[0], incoming[0])
    )
    R, needs = layer[1].size(-1), [*asked[4:9], asked[9] or asked[10], asked[11]]
    found = []
    for d in range(layer[1].size(0)):

        def own(kind, d=d):
            """This direction's part, None of what is not there."""
            return None if kind is None or len(kind) == 0 else kind[d]

        h, c, w_ih, w_hh, _, _, w_hr = map(own, layer[1:8])
        _, d_h_n, d_c_n, d_cell_states = (None, *map(own, incoming[1:]))
        columns = None if d_output is None else d_output[:, d * R : (d + 1) * R]
        h_dot, c_dot, *weights_dot = map(own, cotangents[1:8])
        arrive = columns, d_h_n, d_c_n, d_cell_states
        of_direction = own(results[1]), own(results[2])
        rows, rows_dot = (x, h, c), (x_dot, h_dot, c_dot)
        found.append(of_one_step(rows, (w_ih, w_hh, w_hr), of_direction, arrive, rows_dot, weights_dot, needs))

    h_dot, c_dot, to_x, to_h, to_c, *of_lists = zip(*found)
    # Of the two biases, equal but not to share memory.
    of_lists.insert(3, [None if one is None else one.clone() for one in of_lists[2]])
    of_rows = [
        lambda: torch.cat(h_dot, -1).view_as(incoming[0]),
        lambda: torch.stack(h_dot),
        lambda: torch.stack(c_dot),
        lambda: torch.stack(c_dot),
        lambda: _sum(*to_x).view_as(layer[0]),
        lambda: torch.stack(to_h),
        lambda: torch.stack(to_c),
    ]
    dtype, wide = layer[0].dtype, results[2].dtype
    flat = [make().to(wide if place == 3 else dtype) if asked[place] else None for place, make in enumerate(of_rows)]
    for place, kind in enumerate(of_lists, start=3):
        is_asked = asked[4 + place] and layer[place]
        flat.append([one.to(dtype) for one in kind] if is_asked else nothing(layer[place]))
    return [*flat, *map(nothing, layer[8:])]


def _sum(*given):
    """The sum of what is given; None where all are."""
    given = [one for one in given if one is not None]
    return sum(given[1:], given[0]) if given else None
