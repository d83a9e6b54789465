"""The bookkeeping around layers of any cell: dropout, packing, batch_first, lengths, resets, autocast.

The work is in the operators: one call for a usual call of layers (_stack.py), one a layer for all others; which of them
serves a layer is decided in _choice.py.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fusedlstm import _checks, _int8
from fusedlstm import _contest as contest
from fusedlstm._choice import KERNELS, choose, choose_quantized, is_eager, is_plain, is_tf32_on
from fusedlstm._layers import as_passed, run_each, states_of_layers, weights_of_layers, zero_states
from fusedlstm._private_torch import count_of_dispatch_modes, is_any_autocast_enabled
from fusedlstm._stack import run_stack
from fusedlstm._varied import choose_varied
from fusedlstm._varied import run_usual as run_usual_varied
from fusedlstm.cells import CELLS
from fusedlstm.ops import OPERATORS


def is_on_gpu(x) -> bool:
    """Whether fusedlstm's kernels have a contender there: see _contest.py."""
    return x.is_cuda


def run(
    cell, input, hx, weights, sizes, batch_first=False, dropout=0.0, training=False,
    lengths=None, reset=None, reset_state=None, return_carried=False, return_saved=False, is_cell=False,
    packing=None, frozen=None, is_int8=False, varied=None,
):  # fmt: skip
    """A stack of layers, as `functional.lstm` describes it, of the cell of this name.

    Args:
        weights: all in a row; `sizes` are what they are checked against.
        return_carried, return_saved: also return what layers carry and save at all steps.
        is_cell: one step is run for a cell.
        packing: where `input` is the data of a PackedSequence, the other three of its fields.
        frozen: of each layer `weights` as its operator froze them, for calls that these serve; or None.
        is_int8: whether `weights` are int8 ones, as `_int8.tensors_of` has them; for inference on the CPU.
        varied: variants of the recurrence with their parameters, where the call has any.
    """
    if not (
        frozen is not None or is_int8 or packing is not None or lengths is not None
        or reset is not None or reset_state is not None or return_carried or return_saved or is_cell
        or (dropout != 0 and training and sizes.num_layers > 1)
    ) and type(input) is Tensor:  # fmt: skip
        count = len(CELLS[cell].states)
        states = [] if hx is None else [hx] if count == 1 else hx
        is_known = hx is None or ((count == 1 or type(hx) is tuple) and len(states) == count)
        if varied is not None:
            if is_known and (results := _run_varied(varied, input, states, weights, sizes, batch_first)):
                return results
        elif is_known and is_plain((input, *states, *weights)) and count_of_dispatch_modes() == 0:
            x = input.transpose(0, 1) if batch_first and input.dim() == 3 else input
            if _fits(cell, x, states, weights, sizes):
                return _run_plain(x, states, weights, sizes, batch_first)
    cell = CELLS[cell]
    batch_sizes = sorted_indices = unsorted_indices = None
    if isinstance(input, PackedSequence):
        input, *packing = input
    is_packed = packing is not None
    if is_packed:
        x = input
        batch_sizes, sorted_indices, unsorted_indices = packing
        _checks.check_packed(sizes.name, x, batch_sizes, lengths=lengths, reset=reset, reset_state=reset_state)
        is_batched = True
    else:
        x, is_batched = _time_major(sizes.name, input, batch_first)
    if hx is not None:
        hx = _checks.checked_states(hx, cell, sizes.name)
        if not is_packed or any(state.dim() != 3 for state in hx):
            hx = _checks.batched_states(hx, is_batched)
    if reset_state is not None:
        reset_state = _checks.checked_states(reset_state, cell, sizes.name, "reset_state")
    if is_any_autocast_enabled():
        x, hx, weights, reset_state = _autocast(cell, x, hx, weights, reset_state, is_cell, is_int8)

    _, input_size, H, P, L, D, bias = sizes
    shape = x.shape
    B = shape[1] if batch_sizes is None else _checks.first_batch_size(batch_sizes, sorted_indices, hx)
    try:
        if lengths is not None or reset is not None or reset_state is not None:
            lengths, reset, reset_state = _row_states(
                x, lengths, reset, reset_state, sizes, B, is_batched, batch_first
            )  # fmt: skip
        differentiable = [*weights, x, *(hx or ()), *(reset_state or ())] if torch.is_grad_enabled() else []
        wants_kept, is_compiling = return_carried or return_saved, torch.compiler.is_compiling()
        if frozen and (wants_kept or type(x) is not Tensor or not is_plain((x, *(hx or ()), *(reset_state or ())))):
            frozen = None
        if frozen:
            operator, layers, options = OPERATORS[cell.name].frozen, [[layer] for layer in frozen], ()
        elif is_int8:
            operator, options = choose_quantized(cell.name, [x, *(hx or ())], differentiable), ()
            each = len(weights) // L
            layers = [[weights[i * each : (i + 1) * each]] for i in range(L)]
        elif varied is not None:
            _checks.check_tensors(x, hx, weights, sizes, B)
            operator, layers = choose_varied(cell, varied, weights, x, sizes, wants_kept)
            options = (x.is_cuda and x.dtype is not torch.float64 and is_tf32_on(is_cell),)
        else:
            operator = choose(cell, x, differentiable, H, wants_kept, lengths, reset, is_compiling)
            layers = None  # of `weights`, made where a layer is a call of its own
            options = (x.is_cuda and x.dtype is torch.float32 and is_tf32_on(is_cell),)
        # Kernels check all that they are given, and that it fits together; but they do not know `sizes`.
        fits = shape[-1] == input_size and (
            _int8.fit(weights, sizes)
            if is_int8
            else len(weights) == L * D * ((4 if bias else 2) + (1 if P else 0))
            and weights[1].shape == (cell.gates * H, P or H)
        )
        if is_compiling or not fits or not (frozen or is_int8 or varied or operator in KERNELS[cell.name]):
            _checks.check_tensors(x, hx, weights, sizes, B, is_int8)
        if sorted_indices is not None and hx is not None:
            _checks.check_states(hx, sizes, B, x, "hidden")
            hx = [state.index_select(1, sorted_indices) for state in hx]
        asked = (3, return_carried), (2, return_saved)
        wanted = [place for place, is_asked in asked if is_asked] if wants_kept else ()
        dropout = dropout if training and L > 1 else 0
        is_usual = not (
            frozen or is_int8 or varied is not None or wants_kept or is_cell or dropout or is_compiling or x.is_meta
        ) and (lengths is None and reset is None and operator in KERNELS[cell.name])
        if is_usual and count_of_dispatch_modes() == 0 and is_eager((x, *(hx or ()), *weights)):
            given = hx or ([] if batch_sizes is None else zero_states(cell, x, sizes, B))
            results = _run_usual(x, given, weights, sizes, batch_sizes, *options)
        else:
            if is_on_gpu(x) and not is_compiling:
                contest.last = None
            states = states_of_layers(cell, x, hx, reset_state, sizes, B)
            rows = batch_sizes, lengths, reset
            layers = layers or weights_of_layers(weights, sizes)
            results = run_each(operator, x, states, layers, rows, options, dropout, wanted)
        output, last, *kept = results
        if type(output) is not Tensor or output.is_meta:  # a fake kernel may have run, which checks little
            _checks.check_tensors(x, hx, weights, sizes, B, is_int8)
    except Exception as error:
        _checks.refuse(error, x, hx, weights, sizes, B, is_int8)
        raise

    if return_saved and cell.saved > cell.gates:  # the gates come first
        kept[-1] = kept[-1].narrow(-1, 0, cell.gates * H)
    if is_packed:
        output = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
        if unsorted_indices is not None:
            last = [state.index_select(1, unsorted_indices) for state in last]
    else:
        output = _arranged(output, 0, is_batched, batch_first)
        if kept:
            kept = [_arranged(s.view(L * D, *shape[:2], s.size(-1)), 1, is_batched, batch_first) for s in kept]
        if not is_batched:
            last = [state.squeeze(1) for state in last]
    return output, as_passed(last), *kept


def _fits(name, x, states, weights, sizes) -> bool:
    """Whether these are tensors as the operator of a stack takes them; it does not know `sizes`."""
    _, input_size, H, P, L, D, bias = sizes
    for state in states:
        if type(state) is not Tensor or state.dim() != 3:
            return False
    return (
        x.dim() == 3
        and x.size(2) == input_size
        and x.layout is torch.strided
        and not x.is_meta
        and len(weights) == L * D * ((4 if bias else 2) + (1 if P else 0))
        and weights[1] is not None
        and weights[1].shape == (CELLS[name].gates * H, P or H)
        and H > 0
    )


def _run_plain(x, states, weights, sizes, batch_first):
    """Layers on tensors that fit, and nothing else asked. states: [] for zeros."""
    allow_tf32 = x.is_cuda and x.dtype is torch.float32 and is_tf32_on(False)
    try:
        output, last = _run_usual(x, states, weights, sizes, None, allow_tf32)
    except Exception as error:
        _checks.refuse(error, x, states or None, weights, sizes, x.size(1))
        raise
    return output.transpose(0, 1) if batch_first else output, as_passed(last)


def _run_varied(varied, input, states, weights, sizes, batch_first):
    """The same with variants, if it is all usual, of one layer in one direction; else None."""
    if sizes.num_layers * sizes.directions > 1 or torch.compiler.is_compiling():
        return None
    x = input.transpose(0, 1) if batch_first and input.dim() == 3 else input
    if not _fits(sizes.cell, x, states, weights, sizes):
        return None
    results = run_usual_varied(CELLS[sizes.cell], varied, x, [state.squeeze(0) for state in states], weights)
    if results is None:
        return None
    output, last = results
    return output.transpose(0, 1) if batch_first else output, as_passed([state.unsqueeze(0) for state in last])


def _run_usual(x, states, weights, sizes, batch_sizes, allow_tf32):
    """Output and last states by cuDNN, where that is faster, or by one call of fusedlstm's operator for all layers."""
    call = x, states, weights, sizes, batch_sizes, allow_tf32
    return (is_on_gpu(x) and contest.run(*call)) or run_stack(*call)


# Arrangement


def _time_major(name, input, batch_first):
    """The input as [T, B, I], and whether it has a batch dimension."""
    if not isinstance(input, Tensor):
        raise TypeError(f"{name}: Expected input to be a Tensor or PackedSequence, got {type(input).__name__}")
    _checks.check_dense(name, input, "input")
    dim = input.dim()
    if dim == 3:
        return (input.transpose(0, 1) if batch_first else input), True
    if dim != 2:
        raise ValueError(f"{name}: Expected input to be 2D or 3D, got {dim}D instead")
    return input.unsqueeze(1), False


def _arranged(tensor, time, is_batched, batch_first):
    """Undo `_time_major` for a tensor that has its time in dimension `time`, and batch next."""
    if not is_batched:
        return tensor.squeeze(time + 1)
    return tensor.transpose(time, time + 1) if batch_first else tensor


def _autocast(cell, x, hx, weights, reset_state, is_cell, is_int8):
    """Casts as autocast does for PyTorch's layers and cells: all to its dtype, except what is float64.

    To float32, as for operators that compute in it alone, where the weights are int8.
    """
    device = x.device.type
    if x.is_meta or not torch.is_autocast_enabled(device):
        return x, hx, weights, reset_state
    dtype = torch.get_autocast_dtype(device)
    if x.is_cpu and cell.promotes[int(is_cell)]:
        promoted = torch.promote_types(dtype, (x if hx is None else hx[-1]).dtype)
        dtype = torch.float32 if promoted is torch.float32 else dtype
    if is_int8:
        dtype = torch.float32

    def cast(tensor):
        is_eligible = isinstance(tensor, Tensor) and tensor.is_floating_point()
        return tensor.to(dtype) if is_eligible and tensor.dtype != torch.float64 else tensor

    hx, reset_state = (None if s is None else list(map(cast, s)) for s in (hx, reset_state))
    return cast(x), hx, weights if is_int8 else list(map(cast, weights)), reset_state


def _row_states(x, lengths, reset, reset_state, sizes, B, is_batched, batch_first):
    """Checked lengths, reset and reset_state as the operator takes them."""
    name = sizes.name
    if lengths is not None:
        lengths = _checks.checked_lengths(name, lengths, x, is_batched)
    if reset is None:
        if reset_state is not None:
            raise ValueError(f"{name}: Expected reset with reset_state, got reset_state alone")
        return lengths, None, None
    if sizes.directions == 2:
        raise ValueError(f"{name}: reset has no meaning with bidirectional=True, got both")
    if lengths is not None:
        raise ValueError(f"{name}: Expected one of reset and lengths, got both")
    reset = _checks.checked_reset(name, reset, x, is_batched, batch_first)
    if reset_state is not None:
        reset_state = _checks.batched_states(reset_state, is_batched)
        _checks.check_states(reset_state, sizes, B, x, "reset_state")
    return lengths, reset, reset_state
