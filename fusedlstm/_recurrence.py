"""The recurrence of a layer with variants: its operators seen from Python, their derivative, and what runs where.

`torch.ops.fusedlstm` has `<cell>_recurrence`, see `fusedlstm.reference_varied.recurrence`, and
`<cell>_recurrence_backward`, with kernels for the CPU and for CUDA. Transforms of
torch.func, second derivatives and other devices run the reference.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from fusedlstm import _library, _transforms
from fusedlstm._choice import is_eager
from fusedlstm._namespace import NAMESPACE
from fusedlstm._out_of_memory import raises_out_of_memory
from fusedlstm._private_torch import (
    FakeTensorMode,
    FunctionalTensorMode,
    OpOverload,
    are_transforms_active,
    below_autograd,
    constant_for_dynamo,
    count_of_dispatch_modes,
    is_any_autocast_enabled,
    is_dynamo_compiling,
    is_forward_mode_active,
    plain_apply,
    run_with_real_tensors,
)
from fusedlstm.cells import CELLS, Cell
from fusedlstm.ops import REGISTERED
from fusedlstm.reference import gradients
from fusedlstm.reference_varied import RecurrenceArguments, recurrence


class _Operators(NamedTuple):
    recurrence: OpOverload
    backward: OpOverload


_OPERATORS = {
    name: _Operators(*(getattr(REGISTERED, f"{name}_recurrence{kind}").default for kind in ("", "_backward")))
    for name in CELLS
}
# Of the arguments those that are tensors, or lists of tensors.
_TENSORS = [name for name in RecurrenceArguments._fields if name not in ("eps", "reverse", "keeps", "allow_tf32")]
_tensors_of = operator.attrgetter(*_TENSORS)
# Those of them with a gradient among `d_parameters`, in their order.
_PARAMETERS = "bias_ih", "bias", "weight_ch", "gain_ih", "gain", "gain_c", "bias_c"
# Those whose gradients are made where they are needed alone, in the order of `needs`.
_NEEDED = "input", "weight_ih", "weight_hh"


def run_recurrence(cell: Cell, arguments: RecurrenceArguments) -> tuple[Tensor, list[Tensor]]:
    """The output and the last states of one direction."""
    x = arguments.input
    is_on_gpu = not x.is_cpu and not x.is_meta
    is_transformed = are_transforms_active() or is_forward_mode_active()
    if is_transformed or arguments.weight_hh.size(1) == 0 or (is_on_gpu and _lacks_kernels(x.device)):
        return recurrence(cell, *arguments)
    # Nothing between here and autograd needs to see the operator of a usual call.
    given = (*arguments, *arguments.initial, *arguments.zoneout, *arguments.reset_state)
    if is_eager(given) and count_of_dispatch_modes() == 0:
        return run_kernels(cell, arguments)
    # What is recorded for later keeps what training needs, whether it will or not: the length of a list is recorded.
    keeps = torch.jit.is_tracing() or torch.compiler.is_exporting()
    return _OPERATORS[cell.name].recurrence(*arguments._replace(keeps=keeps))[:2]


def run_kernels(cell: Cell, arguments: RecurrenceArguments) -> tuple[Tensor, list[Tensor]]:
    """The same of a call that is known to be usual, on a device with kernels and with units."""
    return _differentiably(cell.name, arguments)[:2]


def without_autocast(tensor: Tensor):
    """A context in which nothing casts this one; the meta device has no autocast, and no context of its own."""
    if not is_any_autocast_enabled():
        return contextlib.nullcontext()
    return torch.autocast("cpu" if tensor.is_meta else tensor.device.type, enabled=False)


@constant_for_dynamo
@functools.cache
def _lacks_kernels(device) -> bool:
    """Whether the reference must run on this device; says why, once."""
    reason = _library.why_no_kernels(device)
    if reason is not None:
        warnings.warn(
            "fusedlstm runs layers with recurrent dropout, zoneout, layer norm or peepholes as a loop over steps in "
            f"plain PyTorch on {device}: {reason}",
            RuntimeWarning,
            stacklevel=2,
        )
    return reason is not None


class _Recurrence(torch.autograd.Function):
    """`<cell>_recurrence` with its derivative."""

    @staticmethod
    def forward(ctx, name, arguments, *tensors):
        with below_autograd():
            output, last, kept = _OPERATORS[name].recurrence(*arguments)
        ctx.name, ctx.options = name, (arguments.eps, arguments.reverse, arguments.allow_tf32)
        ctx.list_sizes = [len(of) if isinstance(of, (list, tuple)) else -1 for of in _tensors_of(arguments)]
        ctx.count_of_kept = len(kept)
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*kept, *tensors)
        return output, *last, *kept

    @staticmethod
    @raises_out_of_memory
    def backward(ctx, d_output, *d_others):
        cell = CELLS[ctx.name]
        saved = ctx.saved_tensors
        kept, tensors = saved[: ctx.count_of_kept], saved[ctx.count_of_kept :]
        arguments, d_last = _rebuilt(tensors, ctx.list_sizes, *ctx.options), d_others[: len(cell.states)]
        asked = ctx.needs_input_grad[2:]
        if is_dynamo_compiling():  # compiled autograd, to which the contexts below mean nothing
            found = _by_kernels(ctx.name, arguments, asked, ctx.list_sizes, d_output, d_last, kept)
        elif torch.is_grad_enabled() or _transforms.are_active((d_output, *d_last)):
            found = _by_reference(cell, arguments, tensors, asked, ctx.list_sizes, (d_output, *d_last))
        else:
            with below_autograd(), without_autocast(kept[0]):
                found = _by_kernels(ctx.name, arguments, asked, ctx.list_sizes, d_output, d_last, kept)
        return None, None, *[d if ask else None for d, ask in zip(found, asked)]


def _by_kernels(name, a: RecurrenceArguments, asked, list_sizes, d_output, d_last, kept) -> list[Tensor | None]:
    """The gradient of each of the tensors in a row; masks have none."""
    asked = _by_name(asked, list_sizes)
    *of_needed, d_initial, d_reset_state, d_parameters = _OPERATORS[name].backward(
        d_output, list(d_last), *a, list(kept), [asked[name] for name in _NEEDED]
    )
    found = {"initial": d_initial, "reset_state": d_reset_state, "zoneout": [None] * len(a.zoneout)}
    found.update(zip(_NEEDED, of_needed))
    found.update(zip(_PARAMETERS, d_parameters))
    return _in_a_row([found.get(name) for name in _TENSORS])


def _by_reference(cell, a: RecurrenceArguments, tensors, asked, list_sizes, incoming):
    """The same, differentiable."""
    places = [place for place, ask in enumerate(asked) if ask]

    def results(*wanted):
        replaced = list(tensors)
        for place, tensor in zip(places, wanted):
            replaced[place] = tensor
        output, last = recurrence(cell, *_rebuilt(replaced, list_sizes, a.eps, a.reverse, a.allow_tf32))
        return [result for result, d in zip((output, *last), incoming) if d is not None]

    found = gradients(results, [tensors[place] for place in places], [d for d in incoming if d is not None])
    # Zeros where nothing flows, as of the kernels: without steps, or from c after one, which no norm of c is in.
    by_place = {place: torch.zeros_like(tensors[place]) if d is None else d for place, d in zip(places, found)}
    return [by_place.get(place) for place in range(len(tensors))]


def _in_a_row(arguments) -> list:
    row = []
    for argument in arguments:
        if isinstance(argument, (list, tuple)):
            row += argument
        else:
            row.append(argument)
    return row


def _rebuilt(tensors, list_sizes, eps, reverse, allow_tf32) -> RecurrenceArguments:
    """The arguments, of their tensors in a row."""
    named = _by_name(tensors, list_sizes)
    return RecurrenceArguments(**named, eps=eps, reverse=reverse, keeps=True, allow_tf32=allow_tf32)


def _by_name(row, list_sizes) -> dict:
    """What is in a row, one for each tensor, by the arguments' names; list_sizes: -1 for one that is no list."""
    named, place = {}, 0
    for name, size in zip(_TENSORS, list_sizes):
        if size < 0:
            named[name] = row[place]
            place += 1
        else:
            named[name] = list(row[place : place + size])
            place += size
    return named


def _at_autograd_keys(name, *arguments):
    """`<cell>_recurrence` at the Autograd keys: here it is known whether anything asks for gradients."""
    arguments = RecurrenceArguments(*arguments)
    # AOTInductor's executor passes None for an empty list of tensors.
    arguments = arguments._replace(zoneout=arguments.zoneout or [], reset_state=arguments.reset_state or [])
    return _differentiably(name, arguments)


def _differentiably(name, arguments: RecurrenceArguments):
    """The operator's results, whose derivatives are recorded where any is asked."""
    tensors = _in_a_row(_tensors_of(arguments)) if torch.is_grad_enabled() else []
    if not any(tensor is not None and tensor.requires_grad for tensor in tensors):
        with below_autograd():
            return _OPERATORS[name].recurrence(*arguments)
    states = len(arguments.initial)
    output, *others = plain_apply(_Recurrence)(name, arguments._replace(keeps=True), *tensors)
    return output, others[:states], others[states:]


def _fake(cell: Cell, *arguments):
    a = RecurrenceArguments(*arguments)
    T, B, _ = a.input.shape
    GH, H = a.weight_hh.shape

    def rows(width, exists=True):
        return a.input.new_empty((T, B, width) if exists else (0,))

    kept = []
    if a.keeps:
        is_normed, scales = a.gain is not None, a.gain is not None or a.gain_c is not None
        kept = [rows(H), rows(H, a.mask is not None), rows(max(cell.saved, 1) * H), rows(GH, a.gain_ih is not None)]
        kept += [rows(GH, is_normed), rows(4, scales), *[rows(H) for _ in a.initial[1:]]]
    return rows(H), [torch.empty_like(state) for state in a.initial], kept


def _fake_backward(cell: Cell, d_output, d_last, *arguments):
    *arguments, _, needs = arguments
    a = RecurrenceArguments(*arguments)

    def dense(tensor, exists=True):
        return a.input.new_empty(tensor.shape if exists and tensor is not None else (0,))

    return (
        *[dense(getattr(a, name), need) for name, need in zip(_NEEDED, needs)],
        list(map(dense, a.initial)),
        list(map(dense, a.reset_state)),
        [dense(getattr(a, name)) for name in _PARAMETERS],
    )


def _functionalized(mode, operator, types, arguments, options):
    """`<cell>_recurrence` in what traces programs after torch.export; torch.onnx.export is told that ONNX has none."""
    if torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export():
        from fusedlstm import onnx

        a = RecurrenceArguments(*arguments)
        onnx.refuse(
            {
                "recurrent_dropout": a.mask is not None,
                "zoneout": bool(a.zoneout),
                "layer_norm": a.gain is not None,
                "peephole": a.weight_ch is not None,
            }
        )
    return mode.__torch_dispatch__(operator, types, arguments, options)


_rules = torch.library.Library(NAMESPACE, "IMPL")
for _cell in CELLS.values():
    _own = _OPERATORS[_cell.name]
    _rules.impl(_own.recurrence, functools.partial(_at_autograd_keys, _cell.name), "Autograd")
    torch.library.register_torch_dispatch(_own.recurrence.name(), FunctionalTensorMode, _functionalized)
    for _operator, _fake_kernel in ((_own.recurrence, _fake), (_own.backward, _fake_backward)):
        torch.library.register_fake(_operator.name(), functools.partial(_fake_kernel, _cell))
        torch.library.register_torch_dispatch(_operator.name(), FakeTensorMode, run_with_real_tensors)
