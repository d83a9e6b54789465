"""Second order of one step as a cell has it: by one operator where there is one, or by products from Python."""

from __future__ import annotations

import torch

from fusedlstm._private_torch import below_autograd
from fusedlstm._second_order import of_one_step, states_after
from fusedlstm.cells import Cell
from fusedlstm.ops import OPERATORS


def second_order_of_cell(cell: Cell, d_states, tensors, kept, cotangents, asked, is_at_sums) -> list:
    """`second_order` of one step as a cell has it: gradients for `d_states` and `tensors`, where nothing needs a graph.

    Args:
        cell: what ran.
        d_states: gradients of the states after the step, [B, H] each; None for zeros.
        tensors: input, states before the step, weight_ih, weight_hh, and both biases or none.
        kept: output, saved and carried of the operator.
        cotangents: for each gradient of `tensors`; None for zeros.
        asked: whether to return gradients for each of `d_states` and `tensors`.
        is_at_sums: whether what `tensors` get by way of the sums is left to whoever has the gradients for these.

    Returns:
        The gradients for the sums in the layout of `saved`, None without is_at_sums; then the others, None where not
        asked.
    """
    output, saved, carried = kept
    states, count = len(cell.states), len(tensors)
    rows = 1 + states
    if _has_operators(output):
        step = tensors[0], tensors[1:rows], tensors[rows:], False
        with below_autograd():
            return OPERATORS[cell.name].cell_second_order(d_states, *step, kept, cotangents, asked, is_at_sums)
    weights_dot = [*cotangents[rows:], *[None] * (rows + 5 - count)]
    needs = [*asked[states:], *[False] * (rows + 5 - count)]
    found = of_one_step(
        cell, tensors[:rows], [*tensors[rows : rows + 2], None], saved[0], states_after(cell, output[0], carried[0]),
        d_states, cotangents[:rows], weights_dot, needs, is_at_sums,
    )  # fmt: skip
    at_sums = None
    if is_at_sums:
        *d_after, at_sums = found[: states + 1]
        found = *d_after, *found[states + 1 :]
        at_sums = (at_sums[0] if len(at_sums) == 1 else _with_sums_apart(cell.gates, *at_sums)).unsqueeze(0)
    dtype = output.dtype
    return [at_sums, *[one.to(dtype) if ask and one is not None else None for one, ask in zip(found, asked)]]


def gradients_of_sums(cell: Cell, d_states, d_sums, kept, tensors, asked) -> list:
    """The gradients of a step as a cell has it, of which those for the sums are known in part: for each of `tensors`.

    Args:
        d_sums: what `second_order_of_cell` left; `d_states` and the others as there.
    """
    output, saved, carried = kept
    rows = 1 + len(cell.states)
    if _has_operators(output):
        step = tensors[0], tensors[1:rows], tensors[rows:], False
        with below_autograd():
            return OPERATORS[cell.name].cell_sums_backward(d_states, d_sums, *step, kept, asked)
    x, *before = tensors[:rows]
    w_ih, w_hh, *_ = tensors[rows:]
    d_x = d_h = d_sums[0]
    if cell.is_apart:
        H = before[0].size(1)
        d_h = torch.cat([d_x[:, : -2 * H], d_x[:, -H:]], -1)
        d_x = d_x[:, :-H]
    d_before = [None] * len(before)
    if any(d is not None for d in d_states):
        after = states_after(cell, output[0], carried[0])
        _, own, d_before, _ = OPERATORS[cell.name].steps_second_order(
            before, after, saved[0], None, None, [None] * len(before), d_states, None
        )
        d_x = own[0].add_(d_x)
        d_h = own[2].add_(d_h) if cell.is_apart else d_x

    def of_h():
        return torch.addmm(d_before[0], d_h, w_hh) if cell.takes_h and d_before[0] is not None else d_h @ w_hh

    found = [lambda: d_x @ w_ih, of_h, *[lambda d=d: d for d in d_before[1:]]]
    found += [lambda: d_x.t() @ x, lambda: d_h.t() @ before[0], lambda: d_x.sum(0), lambda: d_h.sum(0)]
    return [find() if ask else None for find, ask in zip(found, asked)]


def _has_operators(output) -> bool:
    """Whether `<cell>_cell_second_order` and `<cell>_cell_sums_backward` serve a step, by its output."""
    return output.is_cpu


def _with_sums_apart(gates, d_x, d_h):
    """Gradients for both parts of the sums as `saved` is arranged: one for each gate, two for the last."""
    return torch.cat([d_x, d_h[:, -(d_x.size(1) // gates) :]], -1)
