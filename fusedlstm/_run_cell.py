"""One step of any cell.

An RNN's in training is PyTorch's own. Any other usual call goes to an operator at once, which checks it; the rest go by
way of a layer.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import has_torch_function

from fusedlstm import _checks
from fusedlstm._autograd_steps import UNROUNDED, run_step
from fusedlstm._choice import is_plain
from fusedlstm._layers import as_passed
from fusedlstm._out_of_memory import refuse_if_out_of_memory
from fusedlstm._private_torch import is_any_autocast_enabled, is_intercepted
from fusedlstm._run import run
from fusedlstm._sizes import Sizes
from fusedlstm._varied import run_step as run_varied_step
from fusedlstm.cells import CELLS
from fusedlstm.ops import OPERATORS


def run_cell(name, input, hx, weights, frozen=None, varied=None):
    """One step, as `functional.lstm_cell` describes it, of the cell of this name.

    Args:
        weights: weight_ih, weight_hh, bias_ih and bias_hh, the last two None where there are none.
        frozen: the weights as the cell's operator froze them, for calls that these serve; or None.
        varied: as of `run`.
    """
    cell = CELLS[name]
    if cell.run_step is not None and varied is None and torch.is_grad_enabled():
        h = _by_torch(cell, input, hx, *weights)
        if h is not None:
            return h
    if weights[2] is None and weights[3] is None:
        weights = weights[:2]
    has_one_state = len(cell.states) == 1
    states = () if hx is None else (hx,) if has_one_state else hx
    is_known = type(states) is tuple and (hx is None or len(states) > 0)  # () is none of zeros
    if varied is not None:
        if is_known and (last := run_varied_step(cell, varied, input, states, weights)):
            return as_passed(last)
        return _as_layer(name, input, hx, weights, varied=varied)
    if is_known and type(input) is Tensor and is_plain((input, *states, *weights)):
        try:
            last = run_step(cell, input, states, weights) if frozen is None else _frozen(cell, input, states, frozen)
            return last[0] if has_one_state else tuple(last)
        except Exception as error:
            _refuse(error, name, input, hx, weights)
            if weights[1].numel() > 0:  # no units, as PyTorch's cells allow, are left to the layer
                raise
    return _as_layer(name, input, hx, weights)


def run_quantized_cell(input, hx, weights, sizes):
    """One step with int8 weights, as their operator takes them, of the cell and the sizes of a layer of one."""
    return _as_layer(sizes.cell, input, hx, weights, sizes)


def _by_torch(cell, input, hx, weight_ih, weight_hh, bias_ih, bias_hh):
    """The state after a step in training by PyTorch's own, of a cell that gains nothing in it by kernels, see
    `Cell.run_step`: a step so short that each function of Python on its way would be felt.

    None for any other call, those of tensors that do not fit among them: our operators refuse these, while PyTorch's
    take a bias, say, that has one element.
    """
    if type(input) is not Tensor or is_intercepted() or is_any_autocast_enabled():
        return None
    if not input.is_cpu or input.dtype not in UNROUNDED:
        return None
    others = hx, weight_ih, weight_hh, bias_ih, bias_hh
    try:
        if (dim := input.dim()) == 1:
            hx = None if hx is None else hx.unsqueeze(0)
            h = _by_torch(cell, input.unsqueeze(0), hx, *others[1:])
            return None if h is None else h.squeeze(0)
        if dim != 2 or has_torch_function(others):
            return None
        # PyTorch's step refuses any other number of elements but one.
        if not (bias_ih is bias_hh is None) and (
            (shape := bias_ih.shape) != bias_hh.shape or len(shape) != 1 or (shape[0] == 1 and len(weight_hh) != 1)
        ):
            return None
        if hx is None:
            hx = input.new_zeros(input.size(0), weight_hh.size(0))
        if weight_ih.requires_grad or any(tensor is not None and tensor.requires_grad for tensor in (input, *others)):
            return cell.run_step(input, hx, weight_ih, weight_hh, bias_ih, bias_hh)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        pass
    return None


def _frozen(cell, input, states, frozen):
    """The states after a frozen cell's step; the arguments as those of `run_step`."""
    operator = OPERATORS[cell.name].cell_frozen
    if input.dim() == 2:
        return operator(input, states, frozen)
    last = operator(input.unsqueeze(0), tuple([state.unsqueeze(0) for state in states]), frozen)
    return [state.squeeze_(0) for state in last]


def _refuse(error, *call):
    """Raises what PyTorch's cell says of a call that raised `error`, in its place; or nothing."""
    refuse_if_out_of_memory(error)
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
    _checks.check_dense(owner, input, "input")
    if sizes is None and len(weights) > 2 and (weights[2] is None or weights[3] is None):
        raise RuntimeError(f"{owner}: Expected both bias_ih and bias_hh or neither, got one")
    is_batched = input.dim() == 2
    x = input if is_batched else input.unsqueeze(0)
    is_int8 = sizes is not None
    if not is_int8:
        sizes = Sizes(name, weights[0].shape[-1], weights[1].shape[-1], 0, 1, 1, len(weights) > 2)
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
    first = 0 if input.dim() == 2 else (0, 1)
    last = [state.squeeze(first) for state in ([last] if isinstance(last, Tensor) else last)]
    # Tensors of their own, to write to and to detach in place; graphs and transforms have no use for that. The step
    # itself may have kept the states for its derivatives: they are not changed in place here.
    return as_passed(last if is_intercepted() else [state.clone() for state in last])
