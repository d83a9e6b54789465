"""What runs a layer, or a cell: the cheapest operator that serves the call, PyTorch's own layer, or the reference."""

from __future__ import annotations

import functools
import warnings

import torch
from torch.overrides import has_torch_function

from fusedlstm import _autograd, _library, _transforms, reference
from fusedlstm._private_torch import (
    are_transforms_active,
    constant_for_dynamo,
    is_any_autocast_enabled,
    is_forward_mode_active,
    is_intercepted,
)
from fusedlstm.cells import CELLS
from fusedlstm.ops import OPERATORS


def choose(cell, x, differentiable, H, wants_kept, lengths, reset, is_compiling):
    """What runs a layer of this cell.

    Args:
        x: the input.
        differentiable: the tensors that may require gradients; empty where gradients are off.
        H: the hidden size.
        wants_kept: whether the caller asks for what a layer keeps of all steps.
        lengths, reset: None where there are none.
        is_compiling: torch.compiler.is_compiling().
    """
    operators = OPERATORS[cell.name]
    is_transformed = are_transforms_active() or is_forward_mode_active()
    # A hidden size of 0, as PyTorch's cells allow: nothing for a kernel to do.
    if H == 0 or (is_transformed and _transforms.need_reference(is_compiling)):
        return _REFERENCES[cell.name]
    if not x.is_cpu and not x.is_meta and lacks_kernels(x.device):
        is_plain = not (is_transformed or wants_kept) and lengths is None and reset is None
        return (TORCH_LAYERS if is_plain else _REFERENCES)[cell.name]
    # What is recorded for later must serve both with and without gradients; and of the two, only
    # <cell>_layer can be called by AOTInductor, see _autograd.py. vmap hides what requires gradients.
    is_traced = torch.jit.is_tracing()
    is_exported = is_compiling and torch.compiler.is_exporting()
    if (is_traced or (is_exported and wants_kept)) and is_in_onnx_export():
        return _onnx_layer(cell, wants_kept, lengths, reset)
    if is_traced:
        _warn_of_converters()
    if is_transformed and _transforms.is_differentiating():
        return _autograd.TRANSFORMED_LAYERS[cell.name]
    if wants_kept or is_traced or is_exported or (is_transformed and differentiable):
        return operators.layer
    # Compilers, and whoever overrides operators, must see the operator itself.
    if is_compiling or has_torch_function(differentiable):
        is_differentiable = any(tensor.requires_grad for tensor in differentiable)
        return operators.layer if is_differentiable else operators.inference
    return choose_plain(cell.name, differentiable)


def choose_quantized(name, tensors, differentiable):
    """What runs a layer with int8 weights of the cell of this name on these tensors; differentiable: as of `choose`.

    Raises:
        NotImplementedError: inside of a transform of torch.func, or of torch.onnx.export.
        RuntimeError: a tensor asks for gradients.
    """
    if are_transforms_active() or is_forward_mode_active():
        raise NotImplementedError(
            "Quantized layers have no rules for transforms of torch.func and forward mode: expected a call outside of "
            "vmap, grad, jvp and their kin, got one inside; call the model as it was before fusedlstm.quantize"
        )
    if any(tensor.requires_grad for tensor in differentiable):
        _autograd.refuse_gradients_of_quantized()
    is_traced = torch.jit.is_tracing()
    if (is_traced or torch.compiler.is_exporting()) and is_in_onnx_export():
        from fusedlstm import onnx

        onnx.refuse({"int8 weights": True})
    if is_traced:
        _warn_of_converters(is_int8=True)
    # As in `choose`: compilers, traces, and whoever overrides operators, must see the operator itself.
    if is_traced or torch.compiler.is_compiling() or has_torch_function(tensors):
        return OPERATORS[name].quantized
    return _autograd.QUANTIZED_LAYERS[name]


def choose_plain(name, differentiable):
    """What runs a layer of the cell of this name in the usual case, see `is_plain`; arguments as of `choose`."""
    if not any(tensor.requires_grad for tensor in differentiable):
        return OPERATORS[name].inference
    # Inference mode records nothing, whatever grad mode is inside.
    return OPERATORS[name].inference if torch.is_inference_mode_enabled() else _autograd.LAYERS[name]


def _torch_layer(
    cell, input, initial, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, batch_sizes, *_
):  # fmt: skip
    """PyTorch's own layer as a layer operator, for devices without kernels."""
    kinds = [kind for kind in (weight_ih, weight_hh, bias_ih, bias_hh, weight_hr) if kind]
    flat = [tensor for direction in zip(*kinds) for tensor in direction]
    data = (input,) if batch_sizes is None else (input, batch_sizes)
    order = (False,) if batch_sizes is None else ()  # batch_first
    # training=True: cuDNN refuses a backward pass otherwise; there is no dropout in one layer.
    options = (bool(bias_ih), 1, 0.0, True, len(weight_ih) == 2)
    states = tuple(initial) if len(initial) > 1 else initial[0]
    output, *last = cell.run_layer(*data, states, flat, *options, *order)
    return output, last


_REFERENCES = {name: functools.partial(reference.layer, cell) for name, cell in CELLS.items()}
TORCH_LAYERS = {name: functools.partial(_torch_layer, cell) for name, cell in CELLS.items()}
# What checks its arguments by itself.
KERNELS = {name: (of.inference, _autograd.LAYERS[name], of.layer) for name, of in OPERATORS.items()}


def is_plain(tensors) -> bool:
    """Whether this is the usual call: eager, of no transform, on these tensors, the input first, and kernels for them.

    A layer is then run as `choose_plain` says, and a step by the operators of steps.
    """
    if is_intercepted() or has_torch_function(tensors) or is_any_autocast_enabled():
        return False
    input = tensors[0]
    return input.is_cpu or input.is_meta or not lacks_kernels(input.device)


def is_eager(tensors) -> bool:
    """Whether the call is run at once and as it is: nothing compiles, records, transforms or overrides it."""
    return not (is_intercepted() or has_torch_function(tensors))


@constant_for_dynamo
@functools.cache
def lacks_kernels(device: torch.device) -> bool:
    """Whether PyTorch's own layers must run on this device; says why, once."""
    reason = _library.why_no_kernels(device)
    if reason is not None:
        warnings.warn(f"fusedlstm runs PyTorch's own layers: {reason}", RuntimeWarning, stacklevel=2)
    return reason is not None


@constant_for_dynamo  # which takes PyTorch's for false
def is_in_onnx_export() -> bool:
    """torch.onnx.is_in_onnx_export()."""
    return torch.onnx.is_in_onnx_export()


def _onnx_layer(cell, wants_kept, lengths, reset):
    """What a trace holds for torch.onnx.export(dynamo=False), which knows PyTorch's own LSTM.

    Refuses what that lacks; and with dynamo=True the results that a translation of the operator cannot refuse.
    """
    from fusedlstm import onnx

    onnx.refuse(
        {
            "cell states and gates of all steps": wants_kept,
            "lengths with dynamo=False": lengths is not None,
            "reset": reset is not None,
        }
    )
    return TORCH_LAYERS[cell.name]


# A trace takes what checks find as constants, and is none the worse for it; PyTorch does the same for its own checks.
warnings.filterwarnings("ignore", category=torch.jit.TracerWarning, module="fusedlstm")


def _warn_of_converters(is_int8=False):
    """Says in time what the errors of converters do not: they name an operator that the user never wrote."""
    instead = (
        "the model as it was before fusedlstm.quantize" if is_int8 else "fusedlstm.revert(model), or a trace of it"
    )
    warnings.warn(
        "torch.jit.trace records fusedlstm's operators: the trace runs where fusedlstm is imported. Converters to "
        f"other runtimes know PyTorch's own: give them {instead}",
        stacklevel=2,
    )


@constant_for_dynamo  # which cannot read the switches: a graph keeps them as they were when it was made
def is_tf32_on(is_cell) -> bool:
    """Whether the user lets PyTorch's layers use TF32, or its cells, by either of PyTorch's two sets of switches.

    The one is cuDNN's, and on unless turned off; the other is two matrix products.
    """
    switch = torch.backends.cuda.matmul if is_cell else torch.backends.cudnn.rnn
    return switch.fp32_precision == "tf32"
