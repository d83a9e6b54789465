"""What a layer operator takes and returns, by name; csrc/call/arguments.h has the same names in the same order.

The meanings are written at `fusedlstm.reference.layer`.
"""

from __future__ import annotations

from itertools import chain
from typing import NamedTuple

from torch import Tensor


class LayerArguments(NamedTuple):
    """The arguments of `<cell>_layer` and `<cell>_layer_inference`; of `<cell>_layer_backward` those in its middle."""

    input: Tensor
    initial: list[Tensor]
    weight_ih: list[Tensor]
    weight_hh: list[Tensor]
    bias_ih: list[Tensor]
    bias_hh: list[Tensor]
    weight_hr: list[Tensor]
    batch_sizes: Tensor | None = None
    lengths: Tensor | None = None
    reset: Tensor | None = None
    reset_state: list[Tensor] = []  # noqa: RUF012  (never written to)
    allow_tf32: bool = False


class Differentiable(NamedTuple):
    """Of each argument that can have gradients something: itself, its gradient, or whether there is one.

    In the order of the results of `<cell>_layer_backward`, and of its `needs`.
    """

    input: Tensor
    initial: list[Tensor]
    weight_ih: list[Tensor]
    weight_hh: list[Tensor]
    bias_ih: list[Tensor]
    bias_hh: list[Tensor]
    weight_hr: list[Tensor]
    reset_state: list[Tensor]


class Incoming(NamedTuple):
    """The gradients of a layer's results: the first arguments of `<cell>_layer_backward`. None for zeros."""

    output: Tensor | None
    last: list[Tensor | None]
    carried: Tensor | None


class BackwardArguments(NamedTuple):
    """The arguments of `<cell>_layer_backward`, in three parts: of its call they are all in a row."""

    incoming: Incoming
    layer: LayerArguments
    output: Tensor
    saved: Tensor
    carried: Tensor
    needs: list[bool]

    @classmethod
    def of(cls, arguments) -> BackwardArguments:
        """The parts of all in a row."""
        first, last = len(Incoming._fields), len(Incoming._fields) + len(LayerArguments._fields)
        return cls(Incoming(*arguments[:first]), LayerArguments(*arguments[first:last]), *arguments[last:])

    def in_a_row(self) -> tuple:
        return *self.incoming, *self.layer, *self[2:]


def differentiable(layer: LayerArguments) -> Differentiable:
    return Differentiable(*layer[:7], layer.reset_state)


def layer_arguments(kinds: Differentiable, batch_sizes, lengths, reset, allow_tf32) -> LayerArguments:
    """The opposite of `differentiable`."""
    return LayerArguments(*kinds[:7], batch_sizes, lengths, reset, kinds[7], allow_tf32)


def one_step(input, states, weights, allow_tf32) -> LayerArguments:
    """The layer that runs one step in one direction, from what `<cell>_cell` takes; in each place None for None."""

    def as_steps(rows):
        return None if rows is None else rows.unsqueeze(0)

    lists = [[weight] for weight in weights] + [[]] * (5 - len(weights))
    return LayerArguments(as_steps(input), list(map(as_steps, states)), *lists, allow_tf32=allow_tf32)


def flat(kinds: Differentiable) -> tuple:
    """All that there is of each kind, in a row."""
    return kinds[0], *chain.from_iterable(kinds[1:])


def flat_tensors(layer: LayerArguments) -> tuple:
    """`flat(differentiable(layer))`."""
    return layer[0], *chain.from_iterable(layer[1:7]), *layer.reset_state


def list_sizes(layer: LayerArguments) -> tuple[int, ...]:
    """How many there are of each kind but the input: what `by_kind` asks for."""
    return *map(len, layer[1:7]), len(layer.reset_state)


def by_kind(in_a_row, sizes: tuple[int, ...]) -> Differentiable:
    """The opposite of `flat`."""
    kinds, end = [in_a_row[0]], 1
    for size in sizes:
        kinds.append(list(in_a_row[end : (end := end + size)]))
    return Differentiable(*kinds)
