"""The gradients of weights that the steps of a loop share, of several steps at once.

A loop over a cell asks each step for gradients of the same weights: of few rows, each writes as much as the weights
have, for a few products, and PyTorch reads and writes it again to add it up. But to weights steps are rows of one
batch. So a step hands what its gradients are computed from to the step before it, and one that hands nothing on
computes the gradients of the weights for all that it was handed and itself.

The step before it is what made its h, where both have the same weights; and a pass that comes to it comes there later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fusedlstm._private_torch import below_autograd, number_of_pass, will_run
from fusedlstm.cells import Cell
from fusedlstm.ops import OPERATORS

# Where it gains: with smaller weights what Python has to do takes as long, with more rows products do. Elements of the
# weights; and steps that may be together.
_LEAST_WEIGHTS, _LEAST_STEPS = 1 << 16, 4


class Step(NamedTuple):
    """What the gradients of a step for its weights are computed from."""

    d_states: Sequence[Tensor | None]  # of the states after it
    rows: Sequence[Tensor]  # its input, and the states before it
    kept: Sequence[Tensor]  # output, saved, carried


def most_steps(cell: Cell, rows) -> int:
    """How many steps are together at most: what they hold takes no more memory than the gradients of their weights. 0
    where a step had better be by itself; on a GPU, where it was not tried, each is.

    Args:
        rows: of one of these steps.
    """
    (B, I), H = rows[0].shape, rows[1].shape[1]
    room = cell.gates * H * (I + H)
    if room < _LEAST_WEIGHTS or not rows[0].is_cpu:
        return 0
    of_row = I + (2 * len(cell.states) + 1 + cell.saved + cell.carried) * H
    most = room // max(1, B * of_row)
    return most if most >= _LEAST_STEPS else 0


def handed_to(node) -> list[Step]:
    """The steps that were handed to this one's node of the graph in the pass that is under way."""
    handed = getattr(node, "handed", None)
    return handed.pop(number_of_pass(), []) if handed else []


def hand_on(node, handed: list[Step], own: Step) -> bool:
    """Hands on what was handed to a node, and what is its own, to the one of the step before; False where there is
    none."""
    to = node.next_functions  # of the tensors that it was given: rows, and behind them weights
    before, first = to[1][0], len(own.rows)
    is_alike = type(before) is type(node) and before.name == node.name
    if not is_alike or before.next_functions[first:] != to[first:] or will_run(before) is not True:
        return False
    all_handed = getattr(before, "handed", None)
    if all_handed is None:
        all_handed = before.handed = {}  # by pass: several can be under way in one graph
    # Without the graph, which would hold itself by its tensors where a pass fails.
    own = Step(own.d_states, *[[tensor.detach() for tensor in tensors] for tensors in own[1:]])
    all_handed.setdefault(number_of_pass(), []).extend([*handed, own])
    return True


def gradients_of_weights(name: str, steps: list[Step], weights, asked) -> list[Tensor | None]:
    """The sums over these steps of the cell of this name, for each of the weights; None where not asked."""
    d_states = [
        [torch.zeros_like(row) if d is None else d for d, row in zip(step.d_states, step.rows[1:])] for step in steps
    ]
    d_states, (x, *states) = (
        [torch.cat(tensors) for tensors in zip(*of_steps)] for of_steps in (d_states, [step.rows for step in steps])
    )
    kept = [torch.cat(tensors, 1) for tensors in zip(*[step.kept for step in steps])]
    first = 1 + len(states)
    with below_autograd():
        found = OPERATORS[name].cell_backward(d_states, x, states, weights, False, kept, [*[False] * first, *asked])
    return [gradient if ask else None for gradient, ask in zip(found[first:], asked)]
