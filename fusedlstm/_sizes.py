"""The sizes of a stack of layers, and what follows from them: names and shapes of its weights."""

from __future__ import annotations

from typing import NamedTuple

from fusedlstm.cells import CELLS


class Sizes(NamedTuple):
    """What the weights of a stack of layers must look like."""

    cell: str  # the cell's name
    input_size: int
    hidden_size: int
    proj_size: int
    num_layers: int
    directions: int
    bias: bool

    @property
    def name(self) -> str:
        """Of PyTorch's class, as errors begin with it."""
        return CELLS[self.cell].layer.__name__


def weights_of(sizes: Sizes) -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of every weight of a stack of layers, in a row."""
    cell, input_size, hidden_size, proj_size, num_layers, D, bias = sizes
    rows, R = CELLS[cell].gates * hidden_size, proj_size or hidden_size
    found = []
    for layer in range(num_layers):
        columns = input_size if layer == 0 else D * R
        for reverse in ("", "_reverse")[:D]:
            own = [("weight_ih", (rows, columns)), ("weight_hh", (rows, R))]
            if bias:
                own += [("bias_ih", (rows,)), ("bias_hh", (rows,))]
            if proj_size:
                own.append(("weight_hr", (proj_size, hidden_size)))
            found += [(f"{kind}_l{layer}{reverse}", shape) for kind, shape in own]
    return found
