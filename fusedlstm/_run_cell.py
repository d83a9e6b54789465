"""One step of any cell. The usual call goes to an operator at once, which checks it; any other, by way of a layer."""

from __future__ import annotations

import torch
from torch import Tensor

from fusedlstm import _checks
from fusedlstm._autograd_steps import run_step
from fusedlstm._choice import is_plain, is_tf32_on
from fusedlstm._layers import as_passed
from fusedlstm._run import run
from fusedlstm._varied import run_step as run_varied_step
from fusedlstm.cells import CELLS
from fusedlstm.ops import OPERATORS


def run_cell(cell, input, hx, weight_ih, weight_hh, bias_ih, bias_hh, frozen=None, varied=None):
    """One step, as `functional.lstm_cell` describes it, of the cell of this name.

    Args:
        frozen: the weights as the cell's operator froze them, for calls that these serve; or None.
        varied: as of `run`.
    """
    weights = (
        (weight_ih, weight_hh) if bias_ih is None and bias_hh is None else (weight_ih, weight_hh, bias_ih, bias_hh)
    )
    has_one_state = len(CELLS[cell].states) == 1
    states = () if hx is None else (hx,) if has_one_state else hx
    if varied is not None:
        if type(states) is tuple and (last := run_varied_step(CELLS[cell], varied, input, states, weights)):
            return as_passed(last)
        return _as_layer(cell, input, hx, weights, varied=varied)
    if type(input) is Tensor and type(states) is tuple and is_plain((input, *states, *weights)):
        try:
            last = _plain(cell, input, states, weights, frozen)
            return last[0] if has_one_state else tuple(last)
        except Exception:
            _refuse(cell, input, hx, weights)
            if weight_hh.numel() > 0:  # no units, as PyTorch's cells allow, are left to the layer
                raise
    return _as_layer(cell, input, hx, weights)


def run_quantized_cell(input, hx, weights, sizes):
    """One step with int8 weights, as their operator takes them, of the cell and the sizes of a layer of one."""
    return _as_layer(sizes.cell, input, hx, weights, sizes)


def _plain(name, input, states, weights, frozen):
    """The states after the step, of tensors that fit; raises any exception of others. states: () for zeros."""
    is_batched = input.dim() == 2
    if frozen is None:
        if not states:
            sizes = (input.size(0), weights[1].size(1)) if is_batched else (weights[1].size(1),)
            states = (input.new_zeros(sizes),) * len(CELLS[name].states)
        return run_step(
            name, input, states, weights, input.is_cuda and input.dtype is torch.float32 and is_tf32_on(True)
        )
    if is_batched:
        return OPERATORS[name].cell_frozen(input, states, frozen)
    last = OPERATORS[name].cell_frozen(input.unsqueeze(0), tuple([state.unsqueeze(0) for state in states]), frozen)
    return [state.squeeze_(0) for state in last]


def _refuse(*call):
    """Raises what PyTorch's cell says of a call, in place of the exception that is being handled; or nothing."""
    try:
        x, hx, sizes = _checked(*call)
        states = None if hx is None else [hx] if isinstance(hx, Tensor) else hx
        _checks.check_tensors(x, states, call[-1], sizes, x.size(1))
    except Exception as refusal:
        raise refusal from None


def _checked(name, input, hx, weights, sizes=None):
    """Input and states as those of a layer of one step, after the checks of a cell; and the layer's sizes.

    sizes: those that float weights do not tell, since they are int8.
    """
    cell = CELLS[name]
    owner = cell.cell.__name__
    if not isinstance(input, Tensor):
        raise TypeError(f"{owner}: Expected input to be a Tensor, got {type(input).__name__}")
    if input.dim() not in (1, 2):
        raise ValueError(f"{owner}: Expected input to be 1D or 2D, got {input.dim()}D instead")
    if sizes is None and len(weights) > 2 and (weights[2] is None or weights[3] is None):
        raise RuntimeError(f"{owner}: Expected both bias_ih and bias_hh or neither, got one")
    is_batched = input.dim() == 2
    x = input if is_batched else input.unsqueeze(0)
    is_int8 = sizes is not None
    if not is_int8:
        sizes = _checks.Sizes(name, weights[0].shape[-1], weights[1].shape[-1], 0, 1, 1, len(weights) > 2)
    if hx is not None:
        hx = _checks.checked_states(hx, cell, owner)
        hx = _checks.checked_cell_states(hx, x, is_batched, sizes.hidden_size, owner)
        hx = as_passed([state.unsqueeze(0) for state in hx])
    _checks.check_cell_input(x, weights[0], sizes.input_size, is_int8)
    return x.unsqueeze(0), hx, sizes


def _as_layer(name, input, hx, weights, sizes=None, varied=None):
    """The step as one of a layer; arguments as of `_checked` and `run_cell`."""
    x, hx, of_layer = _checked(name, input, hx, weights, sizes)
    _, last = run(name, x, hx, weights, of_layer, is_cell=True, is_int8=sizes is not None, varied=varied)
    last = _without_first([last] if isinstance(last, Tensor) else last)
    return as_passed(last if input.dim() == 2 else _without_first(last))


def _without_first(states) -> list:
    """The states without their first dimension, as tensors of their own; graphs have no use for that."""
    if torch.compiler.is_compiling():
        return [state.squeeze(0) for state in states]
    return [state.squeeze_(0) for state in states]
