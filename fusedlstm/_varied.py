"""A layer with variants of the recurrence: its masks, and the recurrence of each direction.

Computed in float32 (float64 for float64) from the first product to the last state, and rounded to the dtype of the
tensors at the end. Which recurrence runs, kernels or the reference, is chosen here.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fusedlstm._autograd_steps import UNROUNDED
from fusedlstm._choice import is_in_onnx_export, is_plain
from fusedlstm._private_torch import count_of_dispatch_modes
from fusedlstm._recurrence import run_kernels, run_recurrence, without_autocast
from fusedlstm._variants import Variants, Varied, masks_of
from fusedlstm.cells import Cell
from fusedlstm.reference_varied import RecurrenceArguments


def choose_varied(cell: Cell, varied: Varied, weights, x, sizes, wants_kept):
    """What runs a varied layer on this input, and of each layer the weights that it takes.

    Raises:
        ValueError: the caller asks for what a layer keeps of all steps.
        NotImplementedError: inside of torch.onnx.export.
    """
    names = varied.variants.in_use()
    if wants_kept:
        raise ValueError(
            f"{names[0]}: Expected no return_cell_states and return_gates with it, got one; run single steps for them"
        )
    if (torch.jit.is_tracing() or torch.compiler.is_exporting()) and is_in_onnx_export():
        from fusedlstm import onnx

        onnx.refuse({names[0]: True})
    varied.check(sizes, x.device)
    each = len(weights) // (sizes.num_layers * sizes.directions)
    directions = [
        [*weights[place * each : (place + 1) * each], parameters]
        for place, parameters in enumerate(varied.of_directions(sizes))
    ]
    layers = [[directions[place : place + sizes.directions]] for place in range(0, len(directions), sizes.directions)]
    return functools.partial(layer, cell, varied.variants, varied.training), layers


def run_usual(cell: Cell, varied: Varied, input, initial, weights) -> tuple[Tensor, list[Tensor]] | None:
    """Output and last states of one layer in one direction, as `_direction` has them, where the call is usual and
    nothing is around it; else None: what does not fit is refused below, and the long way then says what is wrong.

    Every microsecond counts here: single steps take a few.

    Args:
        initial: [B, H] each; empty for zeros.
        weights: weight_ih, weight_hh, and both biases or none.
    """
    if type(input) is not Tensor or not input.is_cpu or input.dtype not in UNROUNDED:
        return None
    if not is_plain((input, *initial, *weights, *varied.parameters)) or count_of_dispatch_modes() > 0:
        return None
    try:
        # What the operator takes for a variant that is not there, or for a sum; and no units, which it does not do.
        has_holes = any(parameter is None for parameter in varied.parameters)
        if has_holes or weights[1].size(1) == 0 or (len(weights) > 2 and weights[2].shape != weights[3].shape):
            return None
        initial = initial or [input.new_zeros(input.size(1), weights[1].size(1))] * len(cell.states)
        parameters = dict(zip(varied.kinds, varied.parameters, strict=True))
        return _direction(
            run_kernels, cell, varied.variants, varied.training, input, initial, weights, parameters, None, None, [],
            reverse=False, allow_tf32=False,
        )  # fmt: skip
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return None


def run_step(cell: Cell, varied: Varied, input, states, weights) -> list[Tensor] | None:
    """The states after one step of a cell, where `run_usual` runs it; arguments as its, but for input [B, I]."""
    if type(input) is not Tensor or input.dim() != 2:
        return None
    results = run_usual(cell, varied, input.unsqueeze(0), list(states), weights)
    return results and results[1]


def layer(
    cell: Cell, variants: Variants, training: bool,
    input: Tensor, initial, weights, batch_sizes, lengths, reset, reset_state, allow_tf32: bool,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """output and last states of one layer; arguments as of `reference.layer`, but for

    Args:
        weights: of each direction its weight_ih, weight_hh, both biases or none, and its parameters of `variants` by
            kind.
    """
    dtype, B = input.dtype, initial[0].size(1)
    if batch_sizes is not None:
        T = batch_sizes.size(0)
        rows, lengths = (index.to(input.device) for index in _rows_of_packed(batch_sizes, B, input.size(0)))
        input = input.new_zeros(T * B, input.size(1)).index_copy(0, rows, input).unflatten(0, (T, B))
    elif lengths is not None:
        runs = torch.arange(input.size(0), device=input.device)[:, None] < lengths
        # What lies in the padding, even NaN, must reach neither results nor gradients.
        input = input.where(runs.unsqueeze(-1), 0)
    wide = torch.promote_types(dtype, torch.float32)
    with without_autocast(input):
        input = _as(wide, input)
        directions = [
            _direction(
                run_recurrence, cell, variants, training, input, [_as(wide, state[d]) for state in initial],
                [_as(wide, weight) for weight in own], {kind: _as(wide, p) for kind, p in parameters.items()},
                lengths, reset, [_as(wide, state[d]) for state in reset_state], reverse=d == 1, allow_tf32=allow_tf32,
            )
            for d, (*own, parameters) in enumerate(weights)
        ]  # fmt: skip
    outputs, last = zip(*directions)
    output = _as(dtype, torch.cat(outputs, -1) if len(outputs) > 1 else outputs[0])
    if batch_sizes is not None:
        output = output.flatten(0, 1)[rows]
    stacked = [torch.stack(states) if len(states) > 1 else states[0].unsqueeze(0) for states in zip(*last)]
    return output, [_as(dtype, states) for states in stacked]


def _as(dtype, tensor) -> Tensor:
    """In this dtype. What need not be called is not: right after a layer's kernels nothing else is in the caches, and
    calls that do nothing took as long as a tenth of a small layer.
    """
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


def _direction(
    run, cell, variants, training, input, initial, weights, parameters, lengths, reset, reset_state, *,
    reverse, allow_tf32,
):  # fmt: skip
    weight_ih, weight_hh, *biases = weights
    T, (B, H) = input.size(0), initial[0].shape
    is_apart = cell.is_apart and not variants.layer_norm
    bias_ih, bias = biases or (None, None)
    if biases and not is_apart:
        bias_ih, bias = None, bias_ih + bias
    mask, zoneout = masks_of(variants, len(initial), T, B, H, training, input)
    arguments = RecurrenceArguments(
        input, initial, weight_ih, weight_hh, bias_ih, bias, mask, zoneout, parameters.get("weight_ch"),
        parameters.get("gain_ih"), parameters.get("gain_hh", parameters.get("gain")), parameters.get("gain_c"),
        parameters.get("bias_c"), variants.layer_norm_eps, lengths, reset, reset_state, reverse, keeps=False,
        allow_tf32=allow_tf32,
    )  # fmt: skip
    return run(cell, arguments)


def _rows_of_packed(batch_sizes, B, N) -> tuple[Tensor, Tensor]:
    """As `reference.dense_rows`, of N rows; with sizes that do not follow from values, as compiled graphs need them."""
    rows, steps, sequences = (torch.arange(n, device=batch_sizes.device) for n in (N, batch_sizes.size(0), B))
    steps = steps.repeat_interleave(batch_sizes, output_size=N)
    first = batch_sizes.cumsum(0) - batch_sizes
    return rows - first[steps] + steps * B, (sequences < batch_sizes[:, None]).sum(0)
