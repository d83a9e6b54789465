"""The description of a cell."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn


class Cell(NamedTuple):
    """What a layer must know of its cell. H hidden units, B batch rows.

    Attributes:
        name: of its operators, `fusedlstm::<name>_layer`.
        gates: blocks of H rows in weight_ih and weight_hh.
        states: what goes from step to step, h first: the names of a layer's initial states are f"{state}_0", of its
            last ones f"{state}_n".
        saved, carried: values per unit and step that an operator keeps for its derivative; the first in the tensors'
            dtype, the others, all states but h, in float32 or float64.
        step: step(from_input, from_hidden, states) with the sums W_ih x + b_ih and W_hh h + b_hh, [B, gates * H] each,
            and the states before the step, [B, H]; the states after it, and what is saved, [B, saved * H]. In float32
            or float64, differentiable.
        is_apart: whether a gate takes the two sums each for itself: then their gradients differ.
        takes_h: whether a step takes h itself, beside its product with weight_hh.
        hidden: hidden(saved, states after the step), h before a projection; None without.
        layer, cell: the classes of torch.nn.
        run_layer: PyTorch's own layer of one level, with the arguments of torch.lstm and its likes.
        run_step: PyTorch's own step (input, h, weight_ih, weight_hh, bias_ih, bias_hh), of a cell with so little
            between its products that kernels gain nothing on it in training, one step or two; None of others.
        promotes: whether PyTorch's layer and PyTorch's cell, on the CPU several operators of which autocast casts some,
            return the dtype of their state there, rather than autocast's.
        onnx: the ONNX operator, where the gates of its weights are among PyTorch's, and attributes; of those that are
            lists ONNX has one item for each direction.
        cudnn: cuDNN's number of it, cudnnRNNMode_t; None where cuDNN has no such cell.
    """

    name: str
    gates: int
    states: tuple[str, ...]
    saved: int
    carried: int
    step: Callable[[Tensor, Tensor, list[Tensor]], tuple[list[Tensor], Tensor]]
    is_apart: bool
    takes_h: bool
    hidden: Callable[[Tensor, list[Tensor]], Tensor] | None
    layer: type[nn.RNNBase]
    cell: type[nn.RNNCellBase]
    run_layer: Callable
    run_step: Callable | None
    promotes: tuple[bool, bool]
    onnx: tuple[str, tuple[int, ...], dict]
    cudnn: int | None = None

    @property
    def sums(self) -> int:
        """Sums per unit that the gates take: of a cell with gates that are apart, its last one takes two."""
        return self.gates + self.is_apart

    @property
    def has_projection(self) -> bool:
        """Whether a layer can have one."""
        return self.hidden is not None
