"""Swap the recurrent layers inside a model for those with int8 weights, and back."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils import parametrize

from fusedlstm import _checks, _int8
from fusedlstm._huge_pages import side_by_side
from fusedlstm._module import FusedCell, FusedLayer
from fusedlstm._namespace import REGISTERED
from fusedlstm._variants import Variants
from fusedlstm.cells import CELLS
from fusedlstm.convert import swap, type_of, why_compiled, why_instance, why_varied
from fusedlstm.modules import FusedGRU, FusedGRUCell, FusedLSTM, FusedLSTMCell, FusedRNN, FusedRNNCell
from fusedlstm.quantized import (
    Quantized,
    QuantizedGRU,
    QuantizedGRUCell,
    QuantizedLSTM,
    QuantizedLSTMCell,
    QuantizedRNN,
    QuantizedRNNCell,
)

_FUSED = {
    QuantizedLSTM: FusedLSTM,
    QuantizedGRU: FusedGRU,
    QuantizedRNN: FusedRNN,
    QuantizedLSTMCell: FusedLSTMCell,
    QuantizedGRUCell: FusedGRUCell,
    QuantizedRNNCell: FusedRNNCell,
}
_QUANTIZED = {fused: quantized for quantized, fused in _FUSED.items()} | {
    nn.LSTM: QuantizedLSTM,
    nn.GRU: QuantizedGRU,
    nn.RNN: QuantizedRNN,
    nn.LSTMCell: QuantizedLSTMCell,
    nn.GRUCell: QuantizedGRUCell,
    nn.RNNCell: QuantizedRNNCell,
}


def quantize(
    model: nn.Module,
    dtype: torch.dtype = torch.int8,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    reduce_range: bool | None = None,
) -> nn.Module:
    """Replace every nn.LSTM, nn.GRU, nn.RNN, their cells, and the fused ones, inside `model` by layers for inference
    with int8 weights, in place. They run on the CPU.

    Weights are rounded once, with one scale for each of their rows; input, h, and what a projection is of, in each
    step, each row of the batch by itself, to 8 bits over its own range: no data is needed beforehand. Biases, states,
    gates and results are float32. The new modules (`fusedlstm.quantized`) take all that the fused layers take but
    return_cell_states and return_gates, and have hooks, the training flag and other attributes of the old ones; a
    module that is used in two places stays one. Their weights are buffers. Parametrizations are computed once. What is
    left, one UserWarning names, with path, type and reason: subclasses, modules with a forward set on the instance,
    layers that TorchScript has compiled, weights that are no parameters and may be set anew for each call.

    Args:
        model: a module in evaluation mode; if it is such a layer itself, the replacement is returned.
        dtype: of the weights; torch.int8.
        filter_fn: filter_fn(module, fully_qualified_name) says whether a layer is to be replaced; all are by default.
        reduce_range: round weights to integers from -64 to 64 in place of -127 to 127: the error is about 1.3 times as
            large, and processors with AVX2 but without instructions for bytes (VNNI) are up to 1.5 times as fast. By
            default, on these processors, as ONNX Runtime advises: say True or False for weights that are the same
            wherever they are made.

    Returns:
        `model`, or its replacement.

    Raises:
        TypeError: `model` is not a module.
        ValueError: another dtype; there is no layer to replace; a weight or bias has NaN or infinite elements.
        RuntimeError: a layer is in training mode, or its weights do not fit its sizes.

    Equivalent to:
        scale = weight.abs().amax(1) / (64 if reduce_range else 127)
        weight = (weight / scale[:, None]).round().to(torch.int8)
    """
    if dtype is not torch.int8:
        raise ValueError(f"Expected dtype torch.int8, got {dtype}")
    if reduce_range is None:
        reduce_range = json.loads(REGISTERED._cpu_info())["reduces_range"]
    is_any = is_left = False

    def replacement(module, path):
        nonlocal is_any, is_left
        is_compiled = isinstance(module, torch.jit.ScriptModule)
        is_any = is_any or isinstance(module, Quantized)
        if not is_compiled and not isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            return None
        if filter_fn is not None and not filter_fn(module, path):
            return None
        reason = why_compiled(module, _QUANTIZED) if is_compiled else _why_left(module)
        if reason or is_compiled:
            is_left = is_left or bool(reason)
            return reason
        is_any = True
        return _quantized(module, path, reduce_range)

    model = swap(model, "quantize", replacement)
    if not is_any:
        got = "with none that can be: the warning says why" if is_left else "without any"
        raise ValueError(
            "Expected a model with nn.LSTM, nn.GRU, nn.RNN, their cells, or the fused ones to quantize, got "
            f"{type(model).__name__} {got}{'' if filter_fn is None or is_left else ' that filter_fn takes'}"
        )
    return model


def dequantize(model: nn.Module) -> nn.Module:
    """Undo `quantize` as far as that goes: every quantized layer becomes a fused one with the rounded weights as
    float32 parameters, in place. Where gates add both biases, bias_ih is their sum, and bias_hh zero.

    Returns:
        `model`, or its replacement if it is such a layer itself.

    Raises:
        TypeError: `model` is not a module.
    """

    def replacement(module, _):
        if not isinstance(module, Quantized):
            return None
        return _dequantized(module) if type(module) in _FUSED else "a subclass, whose own code is for int8 weights"

    return swap(model, "dequantize", replacement)


def _why_left(module) -> str:
    """Why this one layer or cell must stay as it is, or ""."""
    cls = type_of(module)
    if cls not in _QUANTIZED:
        return "a type of its own; fusedlstm.quantize takes torch.nn's and the fused ones, and no subclasses"
    if reason := why_instance(module):
        return reason
    if isinstance(module, (FusedLayer, FusedCell)) and Variants.of(module).serve(training=False):
        return f"{why_varied(module)}, which layers of int8 weights have none of"
    if getattr(module, "nonlinearity", "tanh") not in ("tanh", "relu"):
        return f"Unknown nonlinearity: {module.nonlinearity}"
    if module.input_size == 0 or module.hidden_size == 0:
        return "without weights, since input_size or hidden_size is 0"
    if module.input_size > _int8.MOST_COLUMNS or module.hidden_size > _int8.MOST_COLUMNS:
        return f"more than {_int8.MOST_COLUMNS} columns of a weight, whose sums of products may not fit in int32"
    for name in _float_names(_QUANTIZED[cls].like(module)):
        if not (name in module._parameters or parametrize.is_parametrized(module, name)):
            return f"its {name} is no parameter, and may be set anew for each call; make it one first"
    return ""


def _quantized(module, path, reduce_range) -> Quantized:
    """The module with int8 weights."""
    new = _QUANTIZED[type_of(module)].like(module)
    name = repr(path) if path else "the model itself"
    if module.training:
        raise RuntimeError(
            f"Expected a model in evaluation mode to quantize, got {name} in training mode; call model.eval() first"
        )
    with torch.no_grad():
        weights = {name: getattr(module, name) for name in _float_names(new)}
        sizes, values = new.sizes(), list(weights.values())
        _checks.check_weights(values, sizes, values[0])
        for kind, weight in weights.items():
            if not (weight.is_meta or weight.to(torch.float32).isfinite().all()):
                raise ValueError(f"Expected finite values of float32 in {kind} of {name}, got NaN or infinite ones")
        for kind, _, _ in new.tensors():
            made_of = [weights[source].detach() for source in _sources(kind)]
            if kind.startswith("bias"):
                setattr(new, kind, _int8.joined(*made_of, CELLS[sizes.cell]))
            elif made_of:
                of = kind.removeprefix("weight_")
                units = sizes.proj_size if of.startswith("hr") else sizes.hidden_size
                for part, tensor in zip(("weight", "scale", "sum"), _int8.quantized(*made_of, units, reduce_range)):
                    setattr(new, f"{part}_{of}", tensor)
        # What state dicts are loaded into stays there; copies are wherever PyTorch makes them.
        for name, tensor in zip(new._flat_weights_names, side_by_side(new._weights())):
            setattr(new, name, tensor)
    return _taking_over(new, module, weights)


def _dequantized(module) -> FusedLayer | FusedCell:
    """The module with its rounded weights."""
    options = {name: getattr(module, name) for name in module.options}
    for name in ("mode", "dropout"):
        options.pop(name, None)
    if not options.get("proj_size"):
        options.pop("proj_size", None)
    new = _FUSED[type(module)](**options, device="meta")
    if isinstance(new, FusedLayer):
        new.dropout = module.dropout  # which the constructor warns of where there is one layer
    with torch.no_grad():
        values = {}
        for name, _, _ in module.tensors():
            value = getattr(module, name)
            if name.startswith("bias"):
                values |= zip(_sources(name), _int8.parted(value, CELLS[module.sizes().cell]))
            elif name.startswith("weight"):
                scale = getattr(module, f"scale_{name.removeprefix('weight_')}")
                values[name] = _int8.dequantized(value, scale, new._parameters[name].size(1))
        new._parameters.update({name: nn.Parameter(value.clone()) for name, value in values.items()})
    return _taking_over(new, module, [name for name, _, _ in module.tensors()])


def _float_names(module: Quantized) -> list[str]:
    """The weights of the float layer, in its order."""
    return [source for name, _, _ in module.tensors() for source in _sources(name)]


def _sources(name) -> list[str]:
    """The float layer's weights that a tensor of this name stands for."""
    if name.startswith("bias"):
        return [name.replace("gates", part) for part in ("ih", "hh")]
    return [name] if name.startswith("weight") else []


def _taking_over(new, module, weights):
    """`new` with all that `module` has beside its weights of these names and what they were made of: hooks, in the
    containers that their handles know, the training flag, other parameters, buffers and modules, and attributes.
    """
    own, of_every_module = vars(new), vars(nn.Module())
    others = {*_OF_WEIGHTS, *weights}
    for name, value in vars(module).items():
        if isinstance(value, dict) and name in ("_parameters", "_buffers", "_modules"):
            own[name].update({key: item for key, item in value.items() if key not in others})
        elif name in of_every_module or not (name in own or name in others):
            own[name] = value
    return new


# Attributes of layers that are about their weights.
_OF_WEIGHTS = (
    "_flat_weights",
    "_flat_weight_refs",
    "_flat_weights_names",
    "_all_weights",
    "_fused_frozen",
    "parametrizations",
)
